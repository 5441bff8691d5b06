"""Bytes on disk: atomic files, safetensors, training checkpoints, 8-bit weights, adapters, fingerprints."""
