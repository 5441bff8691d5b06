"""FLOP counts against the operations PyTorch counts, and the paper-sized ratios."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ospnext_ms.models.config import DiTConfig
from ospnext_ms.models.flops import forward_flops, model_flops_utilisation
from tools.torch_reference.dit import OSPNextDiT

OSP_NEXT_14B = DiTConfig(5120, 13824, 40, 40, 256, 4096, 512, num_full_blocks=8)


@pytest.mark.parametrize("skiparse", ["full", "dual_end"])
def test_agrees_with_the_operations_of_torch_reference(skiparse):
    config = DiTConfig(64, 128, 4, 8, 64, 32, 16, skiparse=skiparse, num_full_blocks=4)
    net = OSPNextDiT(config)
    counter = FlopCounterMode(display=False)
    with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        net(torch.zeros(1, 16, 2, 16, 16), torch.zeros(1), torch.zeros(1, 16, 32))
    assert forward_flops(config, (2, 8, 8))["total"] == counter.get_total_flops()


@pytest.mark.parametrize(("grid", "ratio"), [((21, 45, 80), 1.76), ((21, 48, 84), 1.80)])
def test_ratio_of_full_to_sparse_at_paper_size(grid, ratio):
    full = forward_flops(replace(OSP_NEXT_14B, skiparse="full"), grid)["total"]
    assert full / forward_flops(OSP_NEXT_14B, grid)["total"] == pytest.approx(ratio, abs=0.006)


def test_utilisation_counts_forward_and_backward_over_all_devices():
    assert model_flops_utilisation(1e12, samples=4, seconds=2.0, peak_tflops=10.0, devices=3) == pytest.approx(0.2)
