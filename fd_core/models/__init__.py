"""One file per architecture; each reads like its paper and holds no device test."""
