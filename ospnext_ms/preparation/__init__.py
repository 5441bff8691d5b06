"""Videos and captions in, caches of latents and text embeddings out."""
