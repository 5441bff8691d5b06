"""A text-to-video model of a few thousand random weights, as files, and the configuration that runs it."""

import mindspore as ms
import pytest

from ospnext_ms.config.generate import GenerateConfig
from ospnext_ms.config.reader import read_section
from ospnext_ms.models.dit import DiTConfig, OSPNextDiT
from ospnext_ms.models.umt5 import UMT5Config, UMT5Encoder
from ospnext_ms.models.vae import VAEConfig, WanVAE
from ospnext_ms.storage.weights import save_weights
from tests.support.paths import TOKENIZER

DIT = {"dim": 32, "ffn_dim": 64, "num_heads": 2, "num_layers": 2, "freq_dim": 16, "text_dim": 16, "text_len": 12,
       "skiparse": "full"}
VAE = {"dim": 4}
TEXT_ENCODER = {"vocab_size": 256, "dim": 16, "ffn_dim": 32, "num_heads": 2, "num_layers": 1}


@pytest.fixture(scope="session")
def model_files(tmp_path_factory):
    """Folder with dit, vae and text_encoder.safetensors."""
    folder = tmp_path_factory.mktemp("model")
    ms.set_seed(0)
    networks = {"dit": OSPNextDiT(DiTConfig(**DIT)), "vae": WanVAE(VAEConfig(**VAE)),
                "text_encoder": UMT5Encoder(UMT5Config(**TEXT_ENCODER))}
    for name, network in networks.items():
        save_weights(network, folder / f"{name}.safetensors")
    return folder


def random_model(folder):
    """Configuration as plain values: two Euler steps to a clip of 5 frames of 32x48."""
    files = {name: {"checkpoint": str(folder / f"{name}.safetensors")} for name in ("dit", "vae", "text_encoder")}
    return {
        "run_mode": "generate",
        "context": {"mode": "pynative"},
        "model": {"dit": DIT | files["dit"], "vae": VAE | files["vae"],
                  "text_encoder": TEXT_ENCODER | files["text_encoder"] | {"tokenizer": str(TOKENIZER)}},
        "sampling": {"sampler": "euler", "steps": 2, "shift": 3.0, "guidance": 3.0, "negative_prompt": "grey",
                     "seed": 7},
        "video": {"height": 32, "width": 48, "frames": 5, "fps": 8},
        "prompts": {"prompt": "a 3 moving left"},
        "output_dir": "nowhere",
    }


@pytest.fixture
def mapping(model_files, tmp_path):
    """The configuration of the random model as plain values, to be changed; results go to tmp_path/output."""
    return random_model(model_files) | {"output_dir": str(tmp_path / "output")}


@pytest.fixture
def configure(mapping):
    """Function that changes sections ({"sampling": {...}}) and returns the GenerateConfig."""
    def change(**sections):
        for name, values in sections.items():
            mapping[name] = mapping[name] | values if isinstance(values, dict) else values
        return read_section(GenerateConfig, mapping)

    return change
