"""The MindSpore DiT against the original network's numbers, torch_reference and the published parameter names."""

import json

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor
from mindspore.nn.utils import no_init_parameters
from safetensors.numpy import load_file

from ospnext_ms.models.dit import DiTConfig, OSPNextDiT
from tests.support.compare import relative_error
from tests.support.dit_twins import random_inputs, torch_twin
from tests.support.paths import FACTS
from tests.support.weights import set_weights

SMALL = dict(dim=64, ffn_dim=128, num_heads=4, num_layers=8, freq_dim=64, text_dim=32, text_len=16)
SIZES = {
    "14b": DiTConfig(5120, 13824, 40, 40, 256, 4096, 512, num_full_blocks=8),
    "1_3b": DiTConfig(1536, 8960, 12, 30, 256, 4096, 512, num_full_blocks=8),
}


@pytest.fixture(scope="module")
def golden_net(golden):
    net = OSPNextDiT(DiTConfig(**SMALL, num_full_blocks=4))
    set_weights(net, load_file(golden / "dit_weights.safetensors"))
    return net


@pytest.fixture(params=["2x8x8", "2x7x10"])
def golden_case(request, golden):
    with np.load(golden / f"dit_sparse_{request.param}.npz") as archive:
        return {name: archive[name] for name in archive.files}


def test_golden_output_and_gradients(golden_net, golden_case):
    x, t, text, weight = (Tensor(golden_case[name]) for name in ("x", "t", "text", "loss_weight"))
    assert relative_error(golden_net(x, t, text).asnumpy(), golden_case["out"]) < 1e-5

    def loss(x):
        return (golden_net(x, t, text) * weight).mean()

    parameters = golden_net.trainable_params()
    value, (grad_x, grads) = ms.value_and_grad(loss, 0, parameters)(x)
    assert relative_error(value.asnumpy(), golden_case["loss"]) < 1e-5
    assert relative_error(grad_x.asnumpy(), golden_case["grad__x"]) < 1e-5
    by_name = {p.name: g.asnumpy() for p, g in zip(parameters, grads, strict=True)}
    wanted = {name[6:]: g for name, g in golden_case.items() if name.startswith("grad__") and name != "grad__x"}
    assert len(wanted) == 9
    errors = {name: relative_error(by_name[name], g) for name, g in wanted.items()}
    assert max(errors.values()) < 1e-5, errors


def test_golden_hidden_states_of_real_tokens(golden_net, golden_case):
    """Every block's output, brought from the packed order into the padded layout of the paper."""
    x, t, text = (Tensor(golden_case[name]) for name in ("x", "t", "text"))
    hidden = []
    handles = [block.register_forward_hook(lambda cell, args, out: hidden.append(out)) for block in golden_net.blocks]
    golden_net(x, t, text)
    for handle in handles:
        handle.remove()
    grid = (x.shape[2], x.shape[3] // 2, x.shape[4] // 2)
    assert len(hidden) == 8
    for i, x_packed in enumerate(hidden):
        pattern = golden_net.orders[i]
        expected = golden_case[f"hidden_{i}"]
        if i in (2, 3, 4):
            actual, expected = x_packed.asnumpy(), _real_tokens(golden_case, expected, pattern, len(x_packed))
        else:
            actual = golden_net.sequence.leave(x_packed, grid, pattern).asnumpy()
        assert relative_error(actual, expected) < 1e-5, f"block {i}"


def _real_tokens(golden_case, padded, pattern, batch):
    """The paper's layout [(P^2 B), N_padded / P^2, C] without its padding, as our packed [B, N, C]."""
    padded = padded.reshape(4, batch, *padded.shape[1:])
    mask = golden_case.get(f"{pattern}_mask", np.ones(padded.shape[:-1], bool)).reshape(padded.shape[:-1])
    return np.stack([np.concatenate([padded[s, b][mask[s, b]] for s in range(4)]) for b in range(batch)])


def test_jit_gives_the_same_numbers(golden_net, golden_case):
    inputs = [Tensor(golden_case[name]) for name in ("x", "t", "text")]
    eager = golden_net(*inputs).asnumpy()
    assert relative_error(ms.jit(golden_net)(*inputs).asnumpy(), eager) < 1e-6


@pytest.mark.parametrize("skiparse", ["full", "dual_end"])
@pytest.mark.parametrize(
    ("grid", "batch"), [((2, 8, 8), 1), ((3, 7, 10), 2), ((2, 2, 2), 2), ((2, 6, 6), 1), ((1, 10, 7), 2)]
)
def test_parity_with_torch_reference(skiparse, grid, batch):
    config = DiTConfig(**SMALL, skiparse=skiparse, num_full_blocks=4 if skiparse == "dual_end" else None)
    net, reference = torch_twin(config, seed=1)
    x, t, text = random_inputs(config, grid, batch, text_len=11)
    with torch.no_grad():
        expected = reference(*map(torch.from_numpy, (x, t, text))).numpy()
    assert relative_error(net(*map(Tensor, (x, t, text))).asnumpy(), expected) < 1e-5


@pytest.mark.parametrize(("skiparse", "grid"), [("full", (2, 5, 4)), ("dual_end", (2, 8, 8)), ("dual_end", (2, 6, 5))])
def test_every_gradient_agrees_with_torch_reference(skiparse, grid):
    config = DiTConfig(**SMALL, skiparse=skiparse, num_full_blocks=4 if skiparse == "dual_end" else None)
    net, reference = torch_twin(config, seed=2)
    x, t, text = random_inputs(config, grid, 2, text_len=16)
    weight = np.random.default_rng(5).normal(size=x.shape).astype(np.float32)
    (reference(*map(torch.from_numpy, (x, t, text))) * torch.from_numpy(weight)).mean().backward()
    parameters = net.trainable_params()

    def loss(x):
        return (net(x, Tensor(t), Tensor(text)) * Tensor(weight)).mean()

    _, grads = ms.value_and_grad(loss, None, parameters)(Tensor(x))
    expected = dict(reference.named_parameters())
    errors = {
        p.name: relative_error(g.asnumpy(), expected[p.name].grad.numpy())
        for p, g in zip(parameters, grads, strict=True)
    }
    assert max(errors.values()) < 1e-4, sorted(errors.items(), key=lambda item: -item[1])[:5]


@pytest.mark.parametrize("size", SIZES)
def test_names_and_shapes_of_the_released_models(size):
    with no_init_parameters():
        net = OSPNextDiT(SIZES[size])
    expected = json.loads((FACTS / f"dit_{size}_names.json").read_text())
    assert {p.name: list(p.shape) for p in net.get_parameters()} == expected


def test_block_patterns():
    patterns = SIZES["14b"].block_patterns
    assert [i for i, pattern in enumerate(patterns) if pattern == "full"] == [0, 1, 2, 3, 36, 37, 38, 39]
    assert all(patterns[i] == ("token" if i % 2 == 0 else "group") for i in range(4, 36))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(num_full_blocks=2), r"num_full_blocks is 2; with 8 layers valid values are \[0, 4\]"),
        (dict(num_full_blocks=None), "num_full_blocks is None"),
        (dict(skiparse="dual"), "dit.skiparse is 'dual'; valid: 'dual_end', 'full'"),
        (dict(num_heads=3), "dim 64 over dit.num_heads 3"),
        (dict(freq_dim=63), "freq_dim is 63"),
        (dict(patch_size=(2, 2, 2)), r"patch_size is \(2, 2, 2\)"),
        (dict(quant="int8"), "dit.quant is 'int8'"),
    ],
)
def test_bad_configurations_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        DiTConfig(**{**SMALL, "num_full_blocks": 4, **changes})


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((1, 15, 2, 8, 8), (1,), (1, 4, 32)), r"latent has shape \(1, 15, 2, 8, 8\)"),
        (((1, 16, 2, 7, 8), (1,), (1, 4, 32)), "a multiple of 2"),
        (((1, 16, 2, 8, 8), (2,), (1, 4, 32)), r"t has shape \(2,\)"),
        (((1, 16, 2, 8, 8), (1,), (1, 4, 31)), r"text has shape \(1, 4, 31\)"),
        (((1, 16, 2, 8, 8), (1,), (1, 17, 32)), "text has 17 tokens; dit.text_len is 16"),
    ],
)
def test_bad_inputs_are_named(golden_net, shapes, words):
    with pytest.raises(ValueError, match=words):
        golden_net(*(Tensor(np.zeros(shape, np.float32)) for shape in shapes))
