"""Checkpoints in and out: names, shapes, formats."""
