"""What a run tells: its figures in a file, on a line, in TensorBoard and as curves, and the time it takes."""
