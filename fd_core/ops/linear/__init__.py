"""Op family `linear`: one file per op."""
