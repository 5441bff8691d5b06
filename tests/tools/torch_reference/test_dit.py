"""The PyTorch DiT against the original network's numbers, against the definition of Skiparse-2D, and in its dtypes."""

import copy
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference networks need PyTorch")

from ospnext_ms.models.config import DiTConfig  # noqa: E402
from tests.support.compare import relative_error  # noqa: E402
from tests.support.paths import FACTS  # noqa: E402
from tools.torch_reference.dit import OSPNextDiT, SelfAttention, rotate  # noqa: E402
from tools.torch_reference.layouts import build_layouts, padded_size, relayout  # noqa: E402
from tools.torch_reference.loading import load  # noqa: E402

GOLDEN_CONFIG = DiTConfig(dim=64, ffn_dim=128, num_heads=4, num_layers=8, freq_dim=64, text_dim=32, text_len=16,
                          num_full_blocks=4)
SPARSE_CONFIG = DiTConfig(dim=32, ffn_dim=64, num_heads=2, num_layers=4, freq_dim=16, text_dim=8, text_len=4,
                          num_full_blocks=0)
TOLERANCE = 1e-5
GRIDS = ("2x8x8", "2x7x10")


@pytest.fixture(scope="module")
def golden_dit(golden):
    return load(OSPNextDiT(GOLDEN_CONFIG), golden / "dit_weights.safetensors")


@pytest.fixture(scope="module", params=GRIDS)
def golden_run(request, golden, golden_dit):
    """Arrays of one file and what our network makes of its inputs: (arrays, out, hidden, loss, gradients)."""
    with np.load(golden / f"dit_sparse_{request.param}.npz") as file:
        arrays = {name: file[name] for name in file.files}
    x, t, text, weight = (torch.from_numpy(arrays[name]) for name in ("x", "t", "text", "loss_weight"))
    x.requires_grad_()
    golden_dit.zero_grad()
    out, hidden = golden_dit(x, t, text, return_hidden=True)
    loss = (out * weight).mean()
    loss.backward()
    gradients = {name: p.grad.clone().numpy() for name, p in (*golden_dit.named_parameters(), ("x", x))}
    return arrays, out.detach().numpy(), [h.detach().numpy() for h in hidden], loss.item(), gradients


def _sparse_dit(seed=0, **arguments):
    """A small all-sparse network whose head is not zero."""
    torch.manual_seed(seed)
    dit = OSPNextDiT(SPARSE_CONFIG, **arguments)
    torch.nn.init.normal_(dit.head.head.weight, std=0.1)
    return dit


def _inputs(height, width, batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 16, 2, 2 * height, 2 * width, generator=generator)
    t = 1000 * torch.rand(batch, generator=generator)
    return x, t, torch.randn(batch, 4, SPARSE_CONFIG.text_dim, generator=generator)


def test_output_and_loss_are_the_originals(golden_run):
    arrays, out, _, loss, _ = golden_run
    assert relative_error(out, arrays["out"]) < TOLERANCE
    assert relative_error(loss, arrays["loss"]) < TOLERANCE


@pytest.mark.parametrize("index", range(GOLDEN_CONFIG.num_layers))
def test_hidden_states_are_the_originals(golden_run, index):
    arrays, _, hidden, _, _ = golden_run
    ours, expected = hidden[index], arrays[f"hidden_{index}"]
    mask = {2: "token_mask", 3: "group_mask", 4: "token_mask"}.get(index)
    assert ours.shape == expected.shape
    if mask in arrays:
        ours, expected = ours[arrays[mask]], expected[arrays[mask]]
    assert relative_error(ours, expected) < TOLERANCE


def test_gradients_are_the_originals(golden_run):
    arrays, *_, gradients = golden_run
    expected = {name.removeprefix("grad__"): array for name, array in arrays.items() if name.startswith("grad__")}
    assert len(expected) == 10
    errors = {name: relative_error(gradients[name], array) for name, array in expected.items()}
    assert all(error < TOLERANCE for error in errors.values()), errors


def test_masks_are_the_originals(golden):
    layouts = build_layouts((2, 7, 10), 2, 16, "cpu")
    with np.load(golden / "dit_sparse_2x7x10.npz") as arrays:
        for name in ("token", "group"):
            for mask in (layouts[name].is_real_SN, layouts[name].key_mask_SN):
                np.testing.assert_array_equal(mask.repeat_interleave(2, dim=0).numpy(), arrays[f"{name}_mask"])


@pytest.mark.parametrize(("file", "config"), [
    ("dit_14b_names.json", {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}),
    ("dit_1_3b_names.json", {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}),
])
def test_names_and_shapes_are_the_checkpoints(file, config):
    with torch.device("meta"):
        dit = OSPNextDiT(DiTConfig(**config, freq_dim=256, text_dim=4096, text_len=512, num_full_blocks=8))
    shapes = {name: list(tensor.shape) for name, tensor in dit.state_dict().items()}
    assert shapes == json.loads((FACTS / file).read_text())


@pytest.mark.parametrize("pattern", ["token", "group"])
@pytest.mark.parametrize("grid", [(2, 2, 2), (1, 6, 6), (3, 1, 9), (2, 8, 4)])
def test_sparse_attention_is_dense_attention_inside_the_sub_sequences(grid, pattern):
    torch.manual_seed(0)
    frames, height, width = grid
    attention = SelfAttention(32, 2)
    x = torch.randn(2, 1, frames * height * width, 32)
    layouts = build_layouts(grid, 2, 16, "cpu")
    packed = attention(relayout(x, "full", pattern, grid, 2), layouts[pattern])
    actual = relayout(packed, pattern, "full", grid, 2)

    _, h, w = (index.flatten() for index in torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    ids = (h % 2) * 2 + w % 2 if pattern == "token" else (h // 2 % 2) * 2 + w // 2 % 2
    heads = x[:, 0].shape[:2] + (2, 16)
    q, k = (rotate(norm(layer(x)).view(2, 1, *heads[1:]), layouts["full"])[:, 0]
            for layer, norm in ((attention.q, attention.norm_q), (attention.k, attention.norm_k)))
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / 4
    weights = scores.masked_fill(ids[:, None] != ids[None, :], -torch.inf).softmax(-1)
    expected = attention.o(torch.einsum("bhnm,bmhd->bnhd", weights, attention.v(x[:, 0]).view(heads)).flatten(-2))
    assert relative_error(actual[:, 0].detach(), expected.detach()) < 1e-6


@pytest.mark.parametrize("ratio", [2, 3])
@pytest.mark.parametrize("grid", [(1, 2, 2), (2, 6, 6), (1, 9, 18), (2, 7, 10)])
def test_relayouts_are_inverse_to_each_other(grid, ratio):
    frames, height, width = grid
    x = torch.arange(1.0, frames * height * width + 1).view(1, 1, -1, 1)
    token = relayout(x, "full", "token", grid, ratio)
    group = relayout(x, "full", "group", grid, ratio)
    length = frames * padded_size(height, ratio) * padded_size(width, ratio) // ratio**2
    assert token.shape == group.shape == (1, ratio**2, length, 1)
    assert torch.equal(relayout(token, "token", "group", grid, ratio), group)
    assert torch.equal(relayout(group, "group", "token", grid, ratio), token)
    assert torch.equal(relayout(token, "token", "full", grid, ratio), x)
    assert torch.equal(relayout(group, "group", "full", grid, ratio), x)


def test_no_mask_where_nothing_is_padded():
    layouts = build_layouts((2, 8, 4), 2, 16, "cpu")
    assert all(layout.key_mask_SN is None for layout in layouts.values())
    assert build_layouts((2, 6, 4), 2, 16, "cpu")["token"].key_mask_SN is not None


@pytest.mark.parametrize("size", [(2, 2), (6, 6)])
def test_all_sparse_network_on_grids_with_empty_sub_sequences(size):
    dit = _sparse_dit()
    x, t, text = _inputs(*size)
    out = dit(x, t, text)
    out.square().mean().backward()
    assert out.shape == x.shape
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in dit.parameters())


@pytest.mark.parametrize("size", [(2, 2), (6, 6)])
def test_padding_tokens_do_not_reach_real_ones(size, monkeypatch):
    dit = _sparse_dit()
    x, t, text = _inputs(*size)
    expected = dit(x, t, text)
    pad = torch.nn.functional.pad
    monkeypatch.setattr("tools.torch_reference.layouts.F.pad",
                        lambda tensor, widths: pad(tensor, widths, value=7.0) if tensor.dim() == 5 else
                        pad(tensor, widths))
    layouts = dit._layouts_of((2, *size), x.device)
    assert any(layout.key_mask_SN is not None for layout in layouts.values())
    assert torch.equal(dit(x, t, text), expected)


def test_short_text_is_zero_padded_and_long_text_refused():
    dit = _sparse_dit()
    x, t, text = _inputs(4, 4)
    padded = torch.cat((text[:, :2], torch.zeros_like(text[:, 2:])), dim=1)
    assert torch.equal(dit(x, t, text[:, :2]), dit(x, t, padded))
    assert not torch.equal(dit(x, t, text), dit(x, t, padded))
    with pytest.raises(ValueError, match="text of 5 tokens is longer than text_len 4"):
        dit(x, t, torch.zeros(2, 5, 8))
    with pytest.raises(ValueError, match="latent of 8x7"):
        dit(x[..., :7], t, text)


@pytest.mark.parametrize("residual_dtype", [None, torch.float32])
def test_bf16_weights(residual_dtype):
    exact = _sparse_dit()
    dit = copy.deepcopy(exact).bfloat16()
    dit.residual_dtype = residual_dtype
    x, t, text = _inputs(7, 10)
    out, hidden = dit(x, t, text.bfloat16(), return_hidden=True)
    assert out.dtype == torch.float32
    assert all(h.dtype == (residual_dtype or torch.bfloat16) for h in hidden)
    assert 1e-4 < relative_error(out.detach(), exact(x, t, text).detach()) < 2e-2
    out.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in dit.parameters())


def test_gradient_checkpointing_changes_nothing():
    dit = _sparse_dit()
    x, t, text = _inputs(7, 10)
    gradients = []
    for dit.gradient_checkpointing in (False, True):
        dit.zero_grad()
        dit(x, t, text).square().mean().backward()
        gradients.append([p.grad.clone() for p in dit.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_tables_built_in_inference_mode_serve_training():
    dit = _sparse_dit()
    inputs = _inputs(6, 4)
    with torch.inference_mode():
        dit(*inputs)
    dit(*inputs).square().mean().backward()
    assert dit.blocks[0].self_attn.q.weight.grad.any()


def test_initial_weights_are_wans():
    torch.manual_seed(0)
    dit = OSPNextDiT(GOLDEN_CONFIG)
    assert not dit.head.head.weight.any()
    assert all(not p.any() for name, p in dit.named_parameters() if name.endswith("bias"))
    expected = {"text_embedding.0.weight": 0.02, "time_embedding.2.weight": 0.02, "blocks.3.modulation": 64**-0.5,
                "blocks.0.ffn.0.weight": (2 / (64 + 128)) ** 0.5, "patch_embedding.weight": (2 / (64 + 64)) ** 0.5}
    parameters = dict(dit.named_parameters())
    for name, std in expected.items():
        assert parameters[name].std().item() == pytest.approx(std, rel=0.15), name


def test_quantised_configurations_are_refused():
    with pytest.raises(ValueError, match="no quantised layers"):
        OSPNextDiT(DiTConfig(dim=32, ffn_dim=64, num_heads=2, num_layers=1, freq_dim=16, text_dim=8, text_len=4,
                             skiparse="full", quant="hif8"))


@pytest.mark.slow
def test_compiled_network_has_the_same_numbers():
    dit = _sparse_dit()
    inputs = _inputs(6, 7)
    runs = []
    for network in (dit, torch.compile(dit, dynamic=False)):
        dit.zero_grad()
        out = network(*inputs)
        out.square().mean().backward()
        runs.append([out.detach(), *(p.grad.clone() for p in dit.parameters())])
    assert all(relative_error(b, a) < TOLERANCE for a, b in zip(*runs, strict=True))
