"""Other engines' names over ours."""
