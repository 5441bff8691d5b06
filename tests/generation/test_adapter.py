"""`generate` with an adapter beside the weights makes what the merged weights make, and says what is wrong with one."""

import numpy as np
import pytest

from ospnext_ms.generation.checks import check_adapter
from ospnext_ms.generation.jobs import plain_jobs
from ospnext_ms.generation.run import generate
from ospnext_ms.generation.text_to_video import TextToVideo
from ospnext_ms.models.dit import DiTConfig, OSPNextDiT
from ospnext_ms.models.lora import Adapters, LoRAConfig
from ospnext_ms.runtime import Runtime
from ospnext_ms.storage.peft_format import read_adapter, write_adapter
from ospnext_ms.storage.weights import load_weights
from tests.support.compare import relative_error
from tests.support.generate_runs import DIT
from tools.conversion.lora import merge_lora

LORA = LoRAConfig(rank=2, alpha=8.0, targets=("q", "o"))


@pytest.fixture(scope="module")
def adapter(model_files, tmp_path_factory):
    """(adapter folder, checkpoint with the adapter merged)."""
    folder = tmp_path_factory.mktemp("adapter")
    net = OSPNextDiT(DiTConfig(**DIT))
    load_weights(net, model_files / "dit.safetensors")
    adapters = Adapters(net, LORA)
    rng = np.random.default_rng(0)
    arrays = {name: (a, 0.2 * rng.standard_normal(b.shape, dtype=np.float32))
              for name, (a, b) in adapters.arrays().items()}
    adapters.load(arrays)
    write_adapter(folder / "adapter", LORA, arrays)
    merge_lora(folder / "adapter", model_files / "dit.safetensors", folder / "merged.safetensors")
    return folder / "adapter", folder / "merged.safetensors"


def latents(config):
    import mindspore as ms

    pipeline = TextToVideo(config, Runtime("CPU", ms.float32, False), plain_jobs(config.sampling, ["a 3 moving left"]))
    return next(pipeline.latents())[1]


def test_unmerged_merged_and_plain(configure, adapter):
    folder, merged = adapter
    config = configure()
    plain = latents(config)
    unmerged = latents(configure(adapter=str(folder)))
    other = configure(adapter=None, model={"dit": DIT | {"checkpoint": str(merged)}})
    assert relative_error(unmerged, latents(other)) < 1e-5
    assert relative_error(unmerged, plain) > 1e-3


def test_a_missing_adapter_is_found_before_anything_is_written(configure, tmp_path):
    config = configure(adapter=str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match=r"adapter: no adapter in .*nothing: adapter_config.json is missing"):
        generate(config)
    assert not (tmp_path / "output").exists()


def test_what_is_written_is_read(adapter):
    config, arrays = read_adapter(adapter[0])
    assert (config.rank, config.alpha, set(config.targets)) == (2, 8.0, {"q", "o"})
    assert len(arrays) == 2 * 2 * DIT["num_layers"]


@pytest.mark.parametrize(("changes", "message"), [
    ({"use_dora": True}, "use_dora True"),
    ({"bias": "all"}, "bias 'all'"),
    ({"peft_type": "IA3"}, "peft_type 'IA3'"),
    ({"target_modules": ".*q"}, "is the pattern '.*q'"),
])
def test_adapters_that_are_not_supported(adapter, configure, tmp_path, changes, message):
    import json
    import shutil

    folder = tmp_path / "changed"
    shutil.copytree(adapter[0], folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        check_adapter(configure(adapter=str(folder)))
