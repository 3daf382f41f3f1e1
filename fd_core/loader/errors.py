"""Errors of loading: everything wrong with a checkpoint in one message, before anything runs."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the text names the file and the tensors."""
