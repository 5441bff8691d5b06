"""Several devices: the mesh of processes, a video shared by sequence parallelism, and sharded parameters."""
