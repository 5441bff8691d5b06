"""Memory by part: what must hold whatever the formula, and (slow) the formula against what a process really takes."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ospnext_ms.config.sections import ParallelSection
from ospnext_ms.models.config import DiTConfig, UMT5Config, VAEConfig
from ospnext_ms.models.lora_config import LoRAConfig
from ospnext_ms.planning import host, memory, shapes
from ospnext_ms.planning.workload import read_workload
from ospnext_ms.storage.adapters import StoredAdapter
from ospnext_ms.storage.peft_format import write_stored_adapter
from tests.support.paths import CONFIGS, ROOT
from tests.support.workload import OSP_NEXT_14B, workload

HD = (720, 1280, 81)
EIGHT = ParallelSection(data_parallel=1, skiparse_parallel=4, ulysses_parallel=2, parameter_shard=8)
BF16 = dict(compute=2, residual=2, flash=True)


def test_weights_optimiser_and_averages_of_the_14b_model():
    plan = workload(OSP_NEXT_14B, HD, 4, 2, recompute=True, parallel=EIGHT, **BF16)
    parts = memory.estimate(plan)
    # All but 0.1 % of the weights is cut in 8; master weights, averages and each moment take 4 bytes.
    eighth = 14_288_491_584 / 8
    assert parts.lasting["weights"] == pytest.approx(4 * eighth, rel=0.01)
    assert parts.lasting["optimiser"] == pytest.approx(8 * eighth, rel=0.01)
    assert parts.lasting["EMA"] == parts.lasting["weights"]
    assert parts.phases["backward"]["gradients"] == parts.lasting["weights"]
    assert parts.phases["backward"]["inputs of the blocks"] == pytest.approx(40 * 75600 / 8 * 5120 * 2, rel=0.03)
    # One block's linears in bf16: 8 C^2 + 2 C F.
    assert parts.phases["backward"]["gathered weights"] == 2 * (8 * 5120**2 + 2 * 5120 * 13824)


def test_the_peak_is_that_of_the_largest_phase():
    parts = memory.Memory({"a": 10}, {"x": {"b": 5, "c": 6}, "y": {"d": 8}})
    assert parts.total == 21


def test_recompute_keeps_less():
    plan = workload(OSP_NEXT_14B, HD, 4, 2, parallel=EIGHT, **BF16)
    kept, again = (memory.estimate(plan, recompute).total for recompute in (False, True))
    assert again < kept / 2


def test_accumulated_gradients_lie_beside_new_ones():
    one, two = (memory.estimate(workload(OSP_NEXT_14B, HD, 4, 2, batches=batches, **BF16)) for batches in (1, 2))
    assert two.phases["backward"]["gradients"] == 2 * one.phases["backward"]["gradients"]


def test_activations_grow_with_batch_and_shrink_with_devices():
    def inputs(skiparse, ulysses, batch=1):
        plan = workload(OSP_NEXT_14B, HD, skiparse, ulysses, recompute=True, batch=batch, **BF16)
        return memory.estimate(plan).phases["backward"]["inputs of the blocks"]

    assert inputs(1, 1, batch=3) == 3 * inputs(1, 1)
    assert inputs(4, 2) == pytest.approx(inputs(1, 1) / 8, rel=0.03)


def test_adapters_leave_the_weights_frozen():
    lora = LoRAConfig(rank=32, alpha=64, targets=("q", "k", "v", "o"))
    plan = workload(OSP_NEXT_14B, HD, 1, 1, trained="lora", lora=lora, stored=2, recompute=True, forwards=2, **BF16)
    parts = memory.estimate(plan)
    adapters = shapes.lora_count(shapes.dit_parameters(OSP_NEXT_14B), lora)
    assert parts.lasting == {"weights": 2 * 14_288_491_584, "optimiser": 8 * adapters, "adapters": 4 * adapters,
                             "EMA": 4 * adapters}


def test_adapters_of_the_attention_keep_less_of_a_block():
    """The inputs of the feed-forward network's linears, what scales and gates need for their gradients: not kept."""
    def kept(**changes):
        plan = workload(OSP_NEXT_14B, HD, 4, 2, recompute=True, parallel=EIGHT, **BF16, **changes)
        return memory.estimate(plan).phases["backward"]["one block's activations"] / memory.tokens_of_device(plan)

    attention, everything = (LoRAConfig(rank=32, alpha=64, targets=targets) for targets in (("q", "o"), ("q", "ffn.0")))
    assert kept() - kept(trained="lora", lora=attention) == pytest.approx((4 * 4 + 2) * 5120 + 2 * 13824, abs=1)
    assert kept(trained="lora", lora=everything) == kept()


def test_blocks_that_come_in_turn_have_room_for_two():
    plans = [read_workload(CONFIGS / "generate" / "14b.yaml", [f"context.offload={offload}", *more], 1, None)
             for offload in ("false", "true") for more in ((), ("model.dit.quant=hif8",))]
    whole, whole_8, turns, turns_8 = (memory.estimate(plan).phases for plan in plans)
    block = 2 * shapes.count({name: shape for name, shape in shapes.dit_parameters(OSP_NEXT_14B).items()
                              if name.startswith("blocks.0.")})
    assert memory.block_bytes(plans[2]) == 40 * block
    assert turns["denoising"]["weights"] == whole["denoising"]["weights"] - 38 * block
    assert turns["decoding"]["transformer"] == turns["denoising"]["weights"]
    assert turns["denoising"]["one block's work"] == whole["denoising"]["one block's work"]
    # The hidden states' place, and two tables for each order.
    staying = 75_600 * (4 * 5120 + 2 * 2 * 4 * 128)
    assert turns["decoding"]["hidden states and rotations"] == staying < turns["denoising"]["one block's work"]
    assert "hidden states and rotations" not in whole["decoding"]
    # Of 8 bits each: half of it, but for biases and norms.
    assert whole_8["denoising"]["weights"] - turns_8["denoising"]["weights"] == pytest.approx(38 * block / 2, rel=0.01)
    # The host loads the same, and keeps the blocks.
    assert host.loading(plans[2]) == host.loading(plans[0])
    assert (host.staying(plans[0]), host.staying(plans[2])) == (0, 40 * block)


def test_the_14b_in_turn_is_counted_below_20_gb():
    plan = read_workload(CONFIGS / "generate" / "14b_offload.yaml", (), 1, None)
    assert memory.estimate(plan).total + sum(memory.outside(plan).values()) < 20e9


def test_adapters_of_a_generation_are_whole_on_every_device(tmp_path):
    """Planned from the headers of their files; those that are not there are said to be left out."""
    layers = {"blocks.0.self_attn.q": (4, 128, 128), "blocks.1.ffn.0": (2, 128, 512)}
    pairs = {name: (np.zeros((rank, into), np.float32), np.zeros((out, rank), np.float32))
             for name, (rank, into, out) in layers.items()}
    write_stored_adapter(tmp_path / "adapter", StoredAdapter(pairs, dict.fromkeys(pairs, 1.0)))
    files = f"adapters=[{{path: {tmp_path}/adapter}}, {{path: {tmp_path}/adapter, strength: 0.5}}]"
    with_adapters, without = (read_workload(CONFIGS / "generate" / "tiny.yaml", overrides)
                              for overrides in ([files], [f"adapter={tmp_path}/gone"]))
    numbers = 2 * sum(rank * (into + out) for rank, into, out in layers.values())
    assert (with_adapters.adapter_values, without.adapter_values) == (numbers, 0)
    assert f"the adapter {tmp_path}/gone is not there and not counted" in without.notes
    more, less = memory.estimate(with_adapters), memory.estimate(without)
    for phase in ("denoising", "decoding"):
        assert sum(more.phases[phase].values()) - sum(less.phases[phase].values()) == with_adapters.compute * numbers


def test_networks_of_a_generation_take_turns():
    text_encoder = UMT5Config(256384, 4096, 10240, 64, 24)
    plan = workload(OSP_NEXT_14B, HD, 1, 1, trained=None, stored=2, text_encoder=text_encoder, **BF16)
    parts = memory.estimate(plan)
    assert parts.phases["text"]["text encoder"] == 2 * shapes.umt5_count(text_encoder)
    assert parts.phases["denoising"]["weights"] == 2 * 14_288_491_584
    assert parts.total == sum(parts.phases["denoising"].values())


def test_the_vae_stays_beside_the_transformer():
    """And works on the whole frame, or on a tile of it."""
    whole, tiled = (memory.estimate(workload(OSP_NEXT_14B, HD, 1, 1, trained=None, stored=2, vae=VAEConfig(dim=96),
                                             vae_tile=tile, **BF16)) for tile in (None, 720))
    for parts in (whole, tiled):
        assert parts.phases["decoding"]["transformer"] == parts.phases["denoising"]["weights"] == 2 * 14_288_491_584
        assert parts.phases["decoding"]["VAE"] == parts.phases["denoising"]["VAE"]
    for part in ("frames under way", "earlier frames"):
        assert tiled.phases["decoding"][part] == pytest.approx(720 / 1280 * whole.phases["decoding"][part], rel=1e-6)


@pytest.mark.parametrize("trained", [None, "lora"])
def test_weights_that_are_not_trained_are_held_in_8_bits(trained):
    lora = LoRAConfig(rank=32, alpha=64, targets=("q", "k", "v", "o")) if trained else None
    values, plain = {}, {}
    for quant in (None, "hif8"):
        for shard in (1, 8):
            plan = workload(replace(OSP_NEXT_14B, quant=quant), HD, 4, 2, trained=trained, lora=lora, stored=2,
                            recompute=True, parallel=replace(EIGHT, parameter_shard=shard), **BF16)
            parts = memory.estimate(plan)
            phase = parts.phases["backward" if trained else "denoising"]
            values[quant, shard] = (parts.lasting if trained else phase)["weights"]
            plain[quant, shard] = phase
    linears = 40 * (8 * 5120**2 + 2 * 5120 * 13824)
    assert values[None, 1] - values["hif8", 1] == linears
    assert values[None, 8] - values["hif8", 8] == linears / 8
    # One matrix of the feed-forward network at a time; where codes are gathered, those of a block.
    assert plain["hif8", 1]["one layer's decoded weight"] == 2 * 5120 * 13824
    assert plain["hif8", 8]["gathered codes"] == linears / 40


def test_weights_that_are_trained_stay_as_they_are():
    plans = [workload(replace(OSP_NEXT_14B, quant=quant), HD, 4, 2, recompute=True, parallel=EIGHT, **BF16)
             for quant in (None, "hif8")]
    plain, quantised = map(memory.estimate, plans)
    assert plain.lasting == quantised.lasting
    assert quantised.phases["backward"].pop("operands being rounded") > 0
    assert plain.phases == quantised.phases


def test_attention_without_flash_keeps_its_weights():
    config = replace(OSP_NEXT_14B, skiparse="full", num_full_blocks=None)
    with_scores, without = (memory.block_activations(config, 1000, 2, flash, 1000**2) for flash in (False, True))
    scores = 4 * 40 * 1000**2
    assert with_scores["self-attention"] - without["self-attention"] > 0.9 * scores


MEASURE = """
import sys
import mindspore as ms
import numpy as np
from mindspore import Tensor
from ospnext_ms.models.config import DiTConfig
from ospnext_ms.models.dit import OSPNextDiT
from ospnext_ms.training.loss import VelocityLoss
from tests.support.resident import resident

ms.set_context(mode=ms.PYNATIVE_MODE)
net = OSPNextDiT(DiTConfig(128, 512, 4, int(sys.argv[1]), 64, 32, 16, num_full_blocks=4))
net.set_train(True)
gradients = ms.value_and_grad(VelocityLoss(net), None, net.trainable_params())
x = Tensor(np.ones((1, 16, 4, 48, 48), np.float32))
loss, values = gradients(x, x * 2, Tensor([0.5], ms.float32), Tensor(np.ones((1, 16, 32), np.float32)))
loss.asnumpy()
print(resident())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_activations_against_the_peak_of_a_process():
    """Eight sparse blocks more, on CPU in fp32: what the peak grows by against the estimate, weights included."""
    options = dict(capture_output=True, check=True, text=True, cwd=ROOT,
                   env=os.environ | {"GLOG_v": "3"})
    peaks = [int(subprocess.run([sys.executable, "-c", MEASURE, str(layers)], **options).stdout.split()[-1])
             for layers in (8, 16)]
    config, tokens = DiTConfig(128, 512, 4, 16, 64, 32, 16, num_full_blocks=4), 4 * 24 * 24
    kept = sum(memory.block_activations(config, tokens, 4, False, tokens**2 / 4).values())
    block = 4 * (shapes.count(shapes.dit_parameters(config))
                 - shapes.count(shapes.dit_parameters(replace(config, num_layers=8)))) / 8
    expected = 8 * (kept + 2 * block)
    print(f"measured {(peaks[1] - peaks[0]) / 8e6:.2f} MB a block, estimated {expected / 8e6:.2f} MB")
    assert peaks[1] - peaks[0] == pytest.approx(expected, rel=0.2)
