"""The studies behind docs/results."""
