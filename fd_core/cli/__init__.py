"""`fd`: serve, generate, bench, doctor, why, matrix."""
