"""Figures of a run: metrics files, curves, TensorBoard."""
