"""Op family `sampling`: one file per op."""
