"""Op family `kv_cache`: one file per op."""
