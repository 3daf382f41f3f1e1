"""Op family `rotary`: one file per op."""
