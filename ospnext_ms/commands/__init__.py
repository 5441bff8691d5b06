"""One file a command: its options in, its exit code out."""
