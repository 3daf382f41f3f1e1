"""The OpenAI-compatible server and its parts."""
