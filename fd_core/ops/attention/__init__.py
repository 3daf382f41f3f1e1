"""Op family `attention`: one file per op."""
