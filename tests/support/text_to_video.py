"""Text-to-video models of a few thousand random weights, as files."""

from pathlib import Path

from tests.support.paths import TOKENIZER

NETWORKS = ("dit", "vae", "text_encoder")
VAE = {"dim": 4}


def text_encoder_of(dit, ffn_dim=32):
    """Sizes of a text encoder for the tiny tokenizer whose embeddings `dit` takes."""
    return {"vocab_size": 256, "dim": dit["text_dim"], "ffn_dim": ffn_dim, "num_heads": 2, "num_layers": 1}


def write_weights(folder, dit, text_encoder, vae=VAE):
    """Writes dit, vae and text_encoder.safetensors with the weights that networks of these sizes begin with."""
    # Only who writes needs the framework; the sizes are read without it.
    import mindspore as ms

    from ospnext_ms.models.dit import DiTConfig, OSPNextDiT
    from ospnext_ms.models.umt5 import UMT5Config, UMT5Encoder
    from ospnext_ms.models.vae import VAEConfig, WanVAE
    from ospnext_ms.storage.weights import save_weights

    ms.set_seed(0)
    networks = OSPNextDiT(DiTConfig(**dit)), WanVAE(VAEConfig(**vae)), UMT5Encoder(UMT5Config(**text_encoder))
    for name, network in zip(NETWORKS, networks, strict=True):
        save_weights(network, Path(folder) / f"{name}.safetensors")


def model_section(folder, dit, text_encoder, vae=VAE):
    """The section `model` that runs what `write_weights` wrote."""
    files = {name: {"checkpoint": str(Path(folder) / f"{name}.safetensors")} for name in NETWORKS}
    return {"dit": dit | files["dit"], "vae": vae | files["vae"],
            "text_encoder": text_encoder | files["text_encoder"] | {"tokenizer": str(TOKENIZER)}}
