"""The packed model against the padded reference, and the fused kernels against their eager contract."""

import importlib
import json
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference networks need PyTorch")

from ospnext_ms.models.config import DiTConfig  # noqa: E402
from tests.support.compare import relative_error  # noqa: E402
from tests.support.paths import FACTS  # noqa: E402
from tools.torch_reference.dit import OSPNextDiT  # noqa: E402
from tools.torch_reference.gpu import fused  # noqa: E402
from tools.torch_reference.gpu.attention_backends import attention_backend, one_call_a_run  # noqa: E402
from tools.torch_reference.gpu.packed import PackedDiT  # noqa: E402
from tools.torch_reference.gpu.sequence import PackedSequence, runs_of  # noqa: E402
from tools.torch_reference.loading import load  # noqa: E402
from tools.torch_reference.step_cache import CachedDiT  # noqa: E402

GOLDEN_CONFIG = DiTConfig(dim=64, ffn_dim=128, num_heads=4, num_layers=8, freq_dim=64, text_dim=32, text_len=16,
                          num_full_blocks=4)
CONFIG = replace(GOLDEN_CONFIG, dim=48, num_heads=3, freq_dim=16, text_dim=8, text_len=4)
GRIDS = [(2, 2, 2), (2, 6, 6), (1, 1, 1), (1, 7, 10), (3, 5, 9), (2, 8, 4), (1, 12, 2)]


def _models(config, seed=0):
    """The padded reference and the packed model with the same weights.

    No weight is zero, and text tokens differ: equal keys would leave gradients that are rounding noise only.
    """
    torch.manual_seed(seed)
    padded = OSPNextDiT(config)
    with torch.no_grad():
        for layer in (padded.text_embedding[0], padded.text_embedding[2]):
            layer.weight.normal_(std=0.2)
        for parameter in padded.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    packed = PackedDiT(config)
    packed.load_state_dict(padded.state_dict(), strict=True)
    return padded, packed


def _inputs(config, grid, batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    frames, height, width = grid
    x = torch.randn(batch, config.in_channels, frames, 2 * height, 2 * width, generator=generator)
    t = 1000 * torch.rand(batch, generator=generator)
    return x, t, torch.randn(batch, config.text_len, config.text_dim, generator=generator)


@pytest.mark.parametrize("layout", [{"num_full_blocks": 0}, {"num_full_blocks": 4},
                                    {"skiparse": "full", "num_full_blocks": None}])
@pytest.mark.parametrize("grid", GRIDS)
def test_packed_is_padded(grid, layout):
    padded, packed = _models(replace(CONFIG, num_layers=8, **layout))
    inputs = _inputs(CONFIG, grid)
    inputs[0].requires_grad_()
    runs = []
    for model in (padded, packed):
        inputs[0].grad = None
        model.zero_grad()
        out = model(*inputs)
        (out * torch.sin(torch.arange(out.numel()).view(out.shape))).mean().backward()
        runs.append((out.detach(), {"x": inputs[0].grad, **{n: p.grad for n, p in model.named_parameters()}}))
    (expected, expected_grads), (out, grads) = runs
    assert relative_error(out, expected) < 1e-6
    # A token alone in its sub-sequence gives q and k no gradient but rounding noise.
    alone = grid == (1, 1, 1)
    errors = {name: relative_error(grads[name], grad) for name, grad in expected_grads.items()
              if not (alone and name.split(".", 2)[-1].startswith(("self_attn.q", "self_attn.k", "self_attn.norm")))}
    bad = {name: error for name, error in errors.items() if not error < 1e-4}
    assert not bad


@pytest.mark.parametrize("grid", ["2x8x8", "2x7x10"])
def test_packed_is_the_original_network(golden, grid):
    packed = load(PackedDiT(GOLDEN_CONFIG), golden / "dit_weights.safetensors")
    with np.load(golden / f"dit_sparse_{grid}.npz") as arrays:
        out = packed(*(torch.from_numpy(arrays[name]) for name in ("x", "t", "text")))
        assert relative_error(out.detach(), arrays["out"]) < 1e-5


@pytest.mark.parametrize("file", ["dit_14b_names.json", "dit_1_3b_names.json"])
def test_names_and_shapes_are_the_checkpoints(file):
    shape = {"dit_14b_names.json": (5120, 13824, 40, 40), "dit_1_3b_names.json": (1536, 8960, 12, 30)}[file]
    config = DiTConfig(**dict(zip(("dim", "ffn_dim", "num_heads", "num_layers"), shape, strict=True)), freq_dim=256,
                       text_dim=4096, text_len=512, num_full_blocks=8)
    with torch.device("meta"):
        model = PackedDiT(config)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == json.loads((FACTS / file).read_text())


def test_other_layout_shares_the_weights():
    padded, packed = _models(CONFIG)
    full = packed.with_layout("full")
    assert all(a is b for a, b in zip(full.parameters(), packed.parameters(), strict=True))
    inputs = _inputs(CONFIG, (1, 5, 6))
    reference = OSPNextDiT(replace(CONFIG, skiparse="full", num_full_blocks=None))
    reference.load_state_dict(padded.state_dict())
    assert relative_error(full(*inputs).detach(), reference(*inputs).detach()) < 1e-6
    assert relative_error(packed(*inputs).detach(), reference(*inputs).detach()) > 1e-3


@pytest.mark.parametrize("residual_dtype", [torch.bfloat16, torch.float32])
def test_bf16_is_near_fp32(residual_dtype):
    _, exact = _models(CONFIG)
    rounded = PackedDiT(CONFIG, dtype=torch.bfloat16, residual_dtype=residual_dtype)
    rounded.load_state_dict(exact.state_dict())
    assert rounded.blocks[0].self_attn.q.weight.dtype == torch.bfloat16
    assert rounded.time_projection[1].weight.dtype == torch.float32
    inputs = _inputs(CONFIG, (2, 7, 6))
    out = rounded(*inputs)
    assert out.dtype == torch.float32
    assert 1e-4 < relative_error(out.detach(), exact(*inputs).detach()) < 2e-2


@pytest.mark.parametrize("layout", [{"num_full_blocks": 4}, {"num_full_blocks": 0}])
def test_updates_left_to_the_next_block_change_nothing(layout, monkeypatch):
    """Without gradients: the update, the gather of a switch and the next norm are one step, on any kernels."""
    _, model = _models(replace(CONFIG, num_layers=8, **layout))
    inputs = _inputs(CONFIG, (2, 7, 6), batch=1)
    alone = model(*inputs).detach()
    gathered = []
    update_norm = fused.EagerKernels.update_norm

    def spy(self, *arguments):
        gathered.append(len(arguments) > 6 and arguments[6] is not None)
        return update_norm(self, *arguments)

    monkeypatch.setattr(fused.EagerKernels, "update_norm", spy)
    with torch.no_grad():
        assert torch.equal(model(*inputs), alone)
    sparse = [pattern for pattern in model.config.block_patterns if pattern != "full"]
    switches = sum(a != b for a, b in zip(["token", *sparse], sparse, strict=False))
    assert sum(gathered) == switches > 0
    assert len(gathered) == 8 * 2 + 7


@pytest.mark.parametrize("num_full_blocks", [0, 4])
@pytest.mark.parametrize("kernels", ["eager", "adds itself"])
def test_reused_steps_are_those_of_the_reference(num_full_blocks, kernels):
    """With no full block at the end the tokens leave the blocks in group order."""
    padded, packed = _models(replace(CONFIG, num_layers=8, num_full_blocks=num_full_blocks))
    packed.kernels = _AddsItself() if kernels == "adds itself" else None
    x, _, text = _inputs(CONFIG, (2, 7, 6))
    reused = [False, True, True, False, True]
    outputs = []
    with torch.no_grad():
        for model in (padded, packed):
            cached = CachedDiT(model, reused)
            outputs.append([cached((1 - 0.1 * i) * x, torch.full((2,), 900.0 - 100 * i), text) for i in range(5)])
        computed = packed(0.9 * x, torch.full((2,), 800.0), text)
    for expected, out in zip(*outputs, strict=True):
        assert relative_error(out, expected) < 1e-6
    assert relative_error(outputs[1][1], computed) > 1e-3


class _AddsItself(fused.EagerKernels):
    """Products that add to the stream themselves, as those of a GPU do."""

    def add_linear_of_parts(self, x_BNC, gate_BC, parts, layer, shift_C=None):
        return x_BNC.copy_(self.update(x_BNC, self.linear_of_parts(parts, layer, shift_C), gate_BC)), None

    def add_linear(self, x_BNC, gate_BC, n, layer):
        return self.add_linear_of_parts(x_BNC, gate_BC, [n], layer)


def test_products_that_add_themselves_change_nothing():
    _, model = _models(replace(CONFIG, num_layers=8, num_full_blocks=4))
    inputs = _inputs(CONFIG, (2, 7, 6), batch=1)
    with torch.no_grad():
        alone = model(*inputs)
        model.kernels = _AddsItself()
        assert torch.equal(model(*inputs), alone)


def test_linear_of_parts_is_the_linear_of_all():
    layer = torch.nn.Linear(6, 5)
    x = torch.randn(1, 9, 6)
    eager, in_place = fused.EagerKernels(), fused.TritonKernels.__new__(fused.TritonKernels)
    with torch.inference_mode():
        for kernels in (eager, in_place):
            for parts in ((x,), x.split((4, 5), dim=1), x.expand(2, -1, -1).split((4, 5), dim=1)):
                expected = layer(torch.cat(parts, dim=1))
                assert relative_error(kernels.linear_of_parts(parts, layer), expected) < 1e-6


def test_gradient_checkpointing_changes_nothing():
    _, model = _models(CONFIG)
    inputs = _inputs(CONFIG, (1, 7, 6))
    gradients = []
    for model.gradient_checkpointing in (False, True):
        model.zero_grad()
        model(*inputs).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_tables_built_in_inference_mode_serve_training():
    _, model = _models(CONFIG)
    inputs = _inputs(CONFIG, (1, 6, 4))
    with torch.inference_mode():
        model(*inputs)
    model(*inputs).square().mean().backward()
    assert model.blocks[3].self_attn.q.weight.grad.any()


def test_inputs_that_do_not_fit_are_refused():
    _, model = _models(CONFIG)
    x, t, text = _inputs(CONFIG, (1, 4, 4))
    padded = torch.cat((text[:, :2], torch.zeros_like(text[:, 2:])), dim=1)
    assert torch.equal(model(x, t, text[:, :2]), model(x, t, padded))
    with pytest.raises(ValueError, match="text of 5 tokens is longer than text_len 4"):
        model(x, t, torch.zeros(2, 5, 8))
    with pytest.raises(ValueError, match="latent of 8x7"):
        model(x[..., :7], t, text)
    with pytest.raises(ValueError, match="no HiFloat8 layers"):
        PackedDiT(replace(CONFIG, quant="hif8"))
    with pytest.raises(ValueError, match="attention backend is 'fast'"):
        attention_backend("fast")
    with pytest.raises(ValueError, match="kernels is 'fast'"):
        fused.kernels("fast")


def test_sequence_is_copied_nowhere_and_attended_once_a_run():
    assert runs_of((3, 3, 0, 2, 3)) == ((2, 3), (1, 2), (1, 3))
    q = torch.randn(1, 11, 2, 4)
    seen = []

    def attention(*tensors):
        seen.append([(tensor.shape[:2], tensor.data_ptr() - q.data_ptr()) for tensor in tensors])
        return tensors[0]

    parts = one_call_a_run(attention, q, q, q, ((2, 3), (1, 2), (1, 3)))
    assert torch.equal(torch.cat(parts, dim=1), q)
    assert seen == [[((2, 3), 0)] * 3, [((1, 2), 6 * 32)] * 3, [((1, 3), 8 * 32)] * 3]
    sequence = PackedSequence(2)
    assert sequence.order((21, 45, 80), "token", 8, "cpu").runs == ((2, 19320), (2, 18480))
    assert sequence.order((21, 48, 84), "group", 8, "cpu").runs == ((4, 21168),)


KERNEL_SHAPES = [(1, 7, 3, 16), (2, 5, 4, 8), (1, 1, 5, 128)]


def _kernel_inputs(shape, dtype, seed=0):
    batch, tokens, heads, head_dim = shape
    generator = torch.Generator().manual_seed(seed)
    width = heads * head_dim
    x, y = (torch.randn(batch, tokens, width, generator=generator).to(dtype) for _ in range(2))
    vectors = [torch.randn(batch, width, generator=generator) for _ in range(3)]
    angles = torch.randn(tokens, head_dim // 2, generator=generator)
    return x, y, vectors, torch.randn(width, generator=generator), (angles.cos(), angles.sin())


def _compare_kernels(actual, shape, dtype):
    """Largest relative error of each method of `actual` against the eager contract; inputs are copied for each."""
    eager = fused.EagerKernels()
    x, y, (gate, factor, shift), weight, tables = _kernel_inputs(shape, dtype)
    calls = {
        "norm": lambda k: (k.norm(x.clone(), factor, shift, dtype),),
        "norm fp32": lambda k: (k.norm(x.clone(), factor, shift, torch.float32),),
        "update": lambda k: (k.update(x.clone(), y.clone(), gate),),
        "update ungated": lambda k: (k.update(x.clone(), y.clone()),),
        "update_norm": lambda k: k.update_norm(x.clone(), y.clone(), gate, factor, shift, dtype),
        "update_norm of a switch": lambda k: k.update_norm(x.clone(), y.clone(), gate, factor, shift, dtype,
                                                           torch.arange(x.shape[1]).flip(0)),
        "update_norm ungated": lambda k: k.update_norm(x.clone(), y.clone(), None, factor[:1], shift[:1], dtype),
        "rms_norm": lambda k: (k.rms_norm(x.clone(), weight),),
        "rms_norm_rotate": lambda k: (k.rms_norm_rotate(x.clone(), weight, *tables),),
    }
    return {name: max(relative_error(a.float(), b.float()) for a, b in zip(call(actual), call(eager), strict=True))
            for name, call in calls.items()}


@pytest.mark.parametrize("shape", KERNEL_SHAPES)
def test_triton_kernels_keep_the_contract(shape, monkeypatch):
    pytest.importorskip("triton", reason="the hand-written kernels need Triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    importlib.import_module("tools.torch_reference.gpu.triton_kernels")
    # Triton's interpreter truncates to bf16 where GPUs round: one unit in the last place, 2^-8.
    for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 5e-3)):
        errors = _compare_kernels(fused.TritonKernels(), shape, dtype)
        assert all(error < bound for error in errors.values()), errors


@pytest.mark.parametrize("width", [48, 5120, 13824])
def test_gates_go_into_the_rows_of_a_weight(width, monkeypatch):
    pytest.importorskip("triton", reason="the hand-written kernels need Triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    triton_kernels = importlib.import_module("tools.torch_reference.gpu.triton_kernels")
    weight, gate = torch.randn(3, width).bfloat16(), torch.randn(3)
    scaled = triton_kernels.scale_rows(weight, gate)
    assert scaled.dtype == torch.bfloat16
    # One unit in the last place, as above.
    assert relative_error(scaled.float(), weight.float() * gate[:, None]) < 5e-3


def test_packed_with_triton_kernels(monkeypatch):
    pytest.importorskip("triton", reason="the hand-written kernels need Triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    importlib.import_module("tools.torch_reference.gpu.triton_kernels")
    config = replace(CONFIG, num_layers=4, num_full_blocks=0)
    padded, packed = _models(config)
    packed.kernels = fused.TritonKernels()
    inputs = _inputs(config, (1, 3, 5))
    with torch.inference_mode():
        assert relative_error(packed(*inputs), padded(*inputs)) < 1e-6
