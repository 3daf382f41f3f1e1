"""Op family `activation`: one file per op."""
