"""Logging, metrics and their names."""
