"""The precision tool on the CPU: what is rounded more is further away, and what is said to be exact is."""

import pytest

torch = pytest.importorskip("torch", reason="the reference networks need PyTorch")

from tools.torch_reference.gpu import fused, precision  # noqa: E402
from tools.torch_reference.gpu.settings import MODELS  # noqa: E402


def test_network_errors_grow_with_what_is_rounded(capsys):
    with torch.inference_mode():
        rows = list(precision.network_errors(MODELS["tiny"], (1, 7, 6), "cpu", fused.kernels("eager")))
    errors = {row[:3]: row[3] for row in rows}
    full, sparse = ({key[1:]: error for key, error in errors.items() if key[0] == layout}
                    for layout in ("full", "dual_end"))
    assert full.keys() == {("float32", "stream"), ("bfloat16", "stream")}
    assert full["float32", "stream"] < full["bfloat16", "stream"] < 3e-2
    assert sparse["float32", "stream"] < sparse["float32", "bf16"] < sparse["float32", "e4m3"] < 0.2
    assert sparse["float32", "fp16"] < sparse["float32", "bf16"]
    assert precision.main(["network", "--model", "tiny", "--grid", "1", "6", "6"]) == 0
    assert capsys.readouterr().out.count("switch sends") == 10


def test_attention_errors_are_those_of_the_recipes():
    with torch.inference_mode():
        rows = list(precision.attention_errors("cpu", tokens=300, queries=64, num_heads=2, head_dim=64))
    errors = {(statistics, name): error for statistics, sharpness, name, _, error in rows if sharpness == 1}
    assert {name for _, name in errors} == set(precision.attention_recipes())
    assert all(1e-5 < error < 0.3 for error in errors.values())
    ours, as_it_is = errors["common k", "e4m3, bound"], errors["common k", "e4m3, bound, k as it is"]
    assert ours < 0.7 * as_it_is
    recipe = errors["common k", "HiF8, a tensor (the recipe)"]
    assert errors["common k", "HiF8, a tensor, k and v centred"] < 0.7 * recipe
