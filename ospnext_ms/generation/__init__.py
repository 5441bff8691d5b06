"""Prompt in, frames out: text encoding, denoising, decoding, who does what among processes."""
