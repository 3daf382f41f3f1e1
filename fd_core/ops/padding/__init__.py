"""Op family `padding`: one file per op."""
