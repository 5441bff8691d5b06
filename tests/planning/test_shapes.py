"""Parameter tables against the released checkpoints and the networks."""

import json

import pytest

from ospnext_ms.models.config import DiTConfig, UMT5Config
from ospnext_ms.models.lora_config import LoRAConfig
from ospnext_ms.planning import shapes
from tests.support.paths import FACTS

DIT = {"14b": DiTConfig(5120, 13824, 40, 40, 256, 4096, 512, num_full_blocks=8),
       "1_3b": DiTConfig(1536, 8960, 12, 30, 256, 4096, 512, num_full_blocks=8)}


@pytest.mark.parametrize("name", ["14b", "1_3b"])
def test_the_released_transformers(name):
    released = {key: tuple(shape) for key, shape in json.loads((FACTS / f"dit_{name}_names.json").read_text()).items()}
    table = shapes.dit_parameters(DIT[name])
    assert table == released
    assert shapes.count(table) == {"14b": 14_288_491_584, "1_3b": 1_418_996_800}[name]


@pytest.mark.framework
def test_the_network_in_this_package():
    from mindspore.nn.utils import no_init_parameters

    from ospnext_ms.models.dit import OSPNextDiT

    config = DiTConfig(64, 96, 4, 3, 32, 24, 8, skiparse="full")
    with no_init_parameters():
        net = OSPNextDiT(config)
    assert shapes.dit_parameters(config) == {name: tuple(p.shape) for name, p in net.parameters_and_names()}


def test_the_released_text_encoder():
    released = json.loads((FACTS / "umt5_xxl_encoder_names.json").read_text())
    assert shapes.umt5_count(UMT5Config(256384, 4096, 10240, 64, 24)) == shapes.count(released)


def test_shards_are_cut_by_rows_with_the_last_one_padded():
    table = {"a.weight": (10, 3), "a.bias": (10,), "norm.weight": (7,)}
    assert shapes.shard_count(table, 1) == 47
    assert shapes.shard_count(table, 4) == 3 * 3 + 17


def test_adapters():
    lora = LoRAConfig(rank=32, alpha=64, targets=("q", "k", "v", "o"))
    # q, k, v, o of self- and cross-attention in 40 blocks, A and B each.
    assert shapes.lora_count(shapes.dit_parameters(DIT["14b"]), lora) == 40 * 8 * 32 * 2 * 5120
