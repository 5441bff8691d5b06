"""`context.offload`: the latents of a run whose weights are all on the device, bit by bit."""

import numpy as np
import pytest

from ospnext_ms.config.generate import GenerateConfig
from ospnext_ms.config.reader import ConfigError, load_config, read_section
from ospnext_ms.config.train import TrainConfig
from ospnext_ms.generation.jobs import plain_jobs
from ospnext_ms.generation.run import generate
from ospnext_ms.generation.text_to_video import TextToVideo
from ospnext_ms.runtime import start
from ospnext_ms.storage.adapters import StoredAdapter
from ospnext_ms.storage.peft_format import write_stored_adapter
from tests.support import generate_runs as runs
from tests.support.configs import changed
from tests.support.paths import CONFIGS
from tests.support.text_to_video import model_section, write_weights

pytestmark = pytest.mark.framework

# Token and group blocks between full ones.
DIT = runs.DIT | {"num_layers": 8, "skiparse": "dual_end", "num_full_blocks": 4}
HIF8 = {"quant": "hif8", "quant_attention": "hif8"}


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    """The configuration of a sparse model of random weights, as plain values."""
    folder = tmp_path_factory.mktemp("sparse")
    write_weights(folder, DIT, runs.TEXT_ENCODER)
    return runs.settings(folder) | {"model": model_section(folder, DIT, runs.TEXT_ENCODER)}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """Folder of an adapter on some layers."""
    folder, rng = tmp_path_factory.mktemp("adapter") / "adapter", np.random.default_rng(0)
    pairs = {f"blocks.{i}.{name}": (rng.standard_normal((2, 32)).astype(np.float32),
                                    rng.standard_normal((rows, 2)).astype(np.float32))
             for i in (0, 3, 4) for name, rows in (("self_attn.q", 32), ("ffn.0", 64))}
    write_stored_adapter(folder, StoredAdapter(pairs, dict.fromkeys(pairs, 1.0)))
    return str(folder)


def latents(values, **sections):
    config = read_section(GenerateConfig, changed(values, **sections))
    pipeline = TextToVideo(config, start(config.context), plain_jobs(config.sampling, ["a 3 moving left", "a 7"]))
    return np.stack([latent for _, latent in pipeline.latents()])


@pytest.mark.parametrize("mode", ["pynative", pytest.param("graph", marks=pytest.mark.slow)])
@pytest.mark.parametrize("variant", ["plain", "adapter", "hif8", "hif8 and adapter"])
def test_the_same_latents(values, adapter, variant, mode):
    sections = {"adapter": adapter} if "adapter" in variant else {}
    if "hif8" in variant:
        sections["model"] = {"dit": values["model"]["dit"] | HIF8}
    expected = latents(values, context={"mode": mode}, **sections)
    assert (latents(values, context={"mode": mode, "offload": True}, **sections) == expected).all()
    assert variant == "plain" or (latents(values) != expected).any()


def test_a_folder_takes_both(values, tmp_path):
    """Where the weights lie decides no number: what is there stays, and is not refused."""
    output = changed(values, video={"frames": 1}) | {"output_dir": str(tmp_path / "videos")}
    generate(read_section(GenerateConfig, output))
    made = (tmp_path / "videos" / "video_0000.mp4").stat().st_mtime_ns
    generate(read_section(GenerateConfig, changed(output, context={"offload": True})))
    assert (tmp_path / "videos" / "video_0000.mp4").stat().st_mtime_ns == made


def test_training_has_no_such_key():
    with pytest.raises(ConfigError, match="offload"):
        load_config(TrainConfig, CONFIGS / "train" / "tiny.yaml", ["context.offload=true"])
