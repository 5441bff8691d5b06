"""Command-line tools beside the package."""
