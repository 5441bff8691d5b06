"""Prompt in, frames out."""
