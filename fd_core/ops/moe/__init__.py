"""Op family `moe`: one file per op."""
