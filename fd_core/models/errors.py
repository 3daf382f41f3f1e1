"""Errors about a model's configuration."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration that cannot be served; the text names the file, the key, and what was wanted."""
