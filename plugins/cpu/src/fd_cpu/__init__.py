"""fd-cpu: compiled kernels for x86-64 and aarch64 behind fd-core's plug-in interface."""
