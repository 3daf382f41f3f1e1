"""Routes, limits and framing."""
