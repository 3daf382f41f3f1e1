"""The op catalogue: contracts, NumPy oracles, cases. `fd_core.ops.<name>(...)` calls an op."""
