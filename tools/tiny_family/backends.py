"""The two ways to turn prompts and starting noise into clips: PyTorch (the reference) and MindSpore (the package).

Both take the same prompts and the same noise and return uint8 [N, F, H, W, 3]. Each framework is imported only by the
function that needs it.
"""

from pathlib import Path

import numpy as np

DIT_FILES = {"full": "dit_full.safetensors", "sparse": "dit_sparse.safetensors"}
GENERATE_CONFIG = Path("yaml_configs/generate/tiny.yaml")


def torch_clips(recipe, weights, model, prompts, noise, sampling, device, dit=None):
    """Clips of the model "full" or "sparse", or of the network `dit`, by tools.torch_reference, in large batches."""
    import torch
    from transformers import AutoTokenizer

    from tools.tiny_family import models

    tokenizer = AutoTokenizer.from_pretrained(weights / "tokenizer", local_files_only=True)
    text_encoder = models.load_text_encoder(recipe.text_encoder, weights / "umt5.safetensors", device)
    if dit is None:
        dit = models.load_dit(recipe.dit(model), weights / DIT_FILES[model], device)
    vae = models.load_vae(recipe.vae_model, weights / "vae.safetensors", device)
    text_len = recipe.dit_full.text_len
    batch_size = 200 if torch.device(device).type == "cuda" else 8
    with torch.no_grad():
        embeddings = models.embed_prompts(text_encoder, tokenizer, prompts, text_len)
        negative = models.embed_prompts(text_encoder, tokenizer, [models.NEGATIVE_PROMPT], text_len)
        start = torch.from_numpy(noise).to(device)
        latents = models.sample_latents(dit, embeddings, negative, start, sampling, batch_size)
    return models.decode_clips(vae, latents, batch_size=min(batch_size, 16))


def mindspore_clips(recipe, weights, model, prompts, noise, sampling, batch_size=8, adapter=None):
    """Clips of the model "full" or "sparse" by the pipeline of ospnext_ms and its tiny.yaml; `adapter` is the folder of
    one in PEFT's format that is used beside it."""
    from ospnext_ms.config.generate import GenerateConfig
    from ospnext_ms.config.reader import load_config
    from ospnext_ms.generation.jobs import plain_jobs
    from ospnext_ms.generation.text_to_video import TextToVideo
    from ospnext_ms.runtime import start

    dit = recipe.dit(model)
    config = load_config(GenerateConfig, GENERATE_CONFIG, values={
        "model.dit.skiparse": dit.skiparse, "model.dit.num_full_blocks": dit.num_full_blocks,
        "model.dit.checkpoint": str(weights / DIT_FILES[model]),
        "model.vae.checkpoint": str(weights / "vae.safetensors"),
        "model.text_encoder.checkpoint": str(weights / "umt5.safetensors"),
        "model.text_encoder.tokenizer": str(weights / "tokenizer"),
        "sampling.steps": sampling.num_steps, "sampling.shift": float(sampling.shift),
        "sampling.guidance": float(sampling.guidance), "sampling.batch_size": batch_size,
        "adapter": adapter and str(adapter),
    })
    pipeline = TextToVideo(config, start(config.context), plain_jobs(config.sampling, prompts), noise)
    return np.stack([video.frames for video in pipeline.videos()])
