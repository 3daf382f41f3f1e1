"""One file per op: its function over Paddle tensors. kernels.toml has what each argument must be."""
