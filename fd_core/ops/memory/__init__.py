"""Op family `memory`: one file per op."""
