"""Other projects' names and habits over ours."""
