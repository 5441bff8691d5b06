"""What videos are worth by benchmarks that others use too."""
