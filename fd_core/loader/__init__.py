"""Weights from disk: formats, names, checks, progress."""
