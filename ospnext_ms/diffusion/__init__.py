"""Flow-matching schedule and samplers."""
