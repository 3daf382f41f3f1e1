"""Op family `norm`: one file per op."""
