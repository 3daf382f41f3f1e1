"""Op family `embedding`: one file per op."""
