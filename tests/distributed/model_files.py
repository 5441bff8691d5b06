"""A random text-to-video model as files, large enough for several processes to share."""

import mindspore as ms

from ospnext_ms.models.dit import DiTConfig, OSPNextDiT
from ospnext_ms.models.umt5 import UMT5Config, UMT5Encoder
from ospnext_ms.models.vae import VAEConfig, WanVAE
from ospnext_ms.storage.weights import save_weights
from tests.generation.conftest import TOKENIZER

VAE = {"dim": 4}


def write_model(folder, dit):
    """Writes the networks to a folder and returns the configuration of `generate` as plain values."""
    text_encoder = {"vocab_size": 256, "dim": dit["text_dim"], "ffn_dim": 16, "num_heads": 2, "num_layers": 1}
    ms.set_seed(0)
    networks = {"dit": OSPNextDiT(DiTConfig(**dit)), "vae": WanVAE(VAEConfig(**VAE)),
                "text_encoder": UMT5Encoder(UMT5Config(**text_encoder))}
    for name, network in networks.items():
        save_weights(network, folder / f"{name}.safetensors")
    files = {name: {"checkpoint": str(folder / f"{name}.safetensors")} for name in networks}
    return {
        "run_mode": "generate",
        "context": {"mode": "pynative"},
        "model": {"dit": dit | files["dit"], "vae": VAE | files["vae"] | {"tile_size": 32, "tile_overlap": 8},
                  "text_encoder": text_encoder | files["text_encoder"] | {"tokenizer": str(TOKENIZER)}},
        "sampling": {"sampler": "euler", "steps": 3, "shift": 3.0, "guidance": 3.0, "negative_prompt": "grey",
                     "seed": 7},
        "video": {"height": 48, "width": 80, "frames": 5, "fps": 8},
        "prompts": {"prompt": "a 3 moving left"},
        "output_dir": str(folder / "output"),
    }
