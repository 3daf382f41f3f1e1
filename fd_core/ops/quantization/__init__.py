"""Op family `quantization`: one file per op."""
