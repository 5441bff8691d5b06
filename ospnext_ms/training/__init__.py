"""Supervised fine-tuning: loop, optimiser set-up, clipping, EMA, checkpoints. Its parts also serve post-training."""
