"""Registry of quantisation methods and their configuration."""
