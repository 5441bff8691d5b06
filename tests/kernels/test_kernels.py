"""Kernel contracts on CPU, and what the Ascend variants hand to their operators."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ospnext_ms.kernels import activations, attention, rotary
from ospnext_ms.kernels.attention import Attention
from ospnext_ms.kernels.contracts import CONTRACTS
from ospnext_ms.models.config import DiTConfig
from ospnext_ms.models.dit import DiTBlock
from ospnext_ms.models.layers import Linear
from ospnext_ms.models.sequence import PackedSequence
from tests.support.compare import relative_error


def _qkv(num_queries, num_keys, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((2, num_queries, 4, 16), (2, num_keys, 4, 16), (2, num_keys, 4, 16))
    return [Tensor(rng.normal(size=shape).astype(np.float32)) for shape in shapes]


@pytest.mark.parametrize(("name", "check"), CONTRACTS)
def test_contract_holds(name, check):
    assert "relative error" in check()


@pytest.mark.parametrize("scores", [1, 5000, 2**24])
def test_block_size_does_not_change_the_result(monkeypatch, scores):
    q, k, v = _qkv(37, 50)
    whole = attention.blockwise_attention(q, k, v).asnumpy()
    monkeypatch.setattr(attention, "SCORES_PER_BLOCK", scores)
    assert relative_error(attention.blockwise_attention(q, k, v).asnumpy(), whole) < 1e-6


def test_blockwise_never_holds_more_scores_than_a_block(monkeypatch):
    q, k, v = _qkv(300, 100)
    monkeypatch.setattr(attention, "SCORES_PER_BLOCK", 8000)
    held = []
    softmax = attention.ops.softmax
    monkeypatch.setattr(attention.ops, "softmax", lambda x, axis: held.append(x.size) or softmax(x, axis))
    attention.blockwise_attention(q, k, v)
    assert max(held) <= 8000
    assert sum(held) == 2 * 4 * 300 * 100


def test_large_scores_do_not_overflow():
    q, k, v = _qkv(5, 9)
    assert np.isfinite(attention.blockwise_attention(q * 1e4, k, v).asnumpy()).all()


def test_flash_call_gives_layout_heads_and_scale_and_no_mask(monkeypatch):
    calls = []

    def record(*args, **kwargs):
        calls.append((args, kwargs))
        return args[0]

    monkeypatch.setattr(attention.ops, "flash_attention_score", record)
    q, k, v = _qkv(8, 12)
    Attention("flash")(q, k, v)
    ((args, kwargs),) = calls
    assert [a.shape for a in args[:3]] == [(2, 8, 4, 16), (2, 12, 4, 16), (2, 12, 4, 16)]
    assert args[3] == 4
    assert kwargs == {"scalar_value": 0.25, "input_layout": "BSND"}


def test_one_flash_call_per_distinct_length(monkeypatch):
    shapes = []
    monkeypatch.setattr(attention, "flash_attention", lambda q, k, v: shapes.append(q.shape) or q)
    grid = (2, 45, 80)
    x = Tensor(np.zeros((1, 2 * 45 * 80, 1, 2), np.float32))
    out = PackedSequence(2).attend_sparse(Attention("flash"), x, x, x, grid, "token")
    assert shapes == [(2, 2 * 23 * 40, 1, 2), (2, 2 * 22 * 40, 1, 2)]
    assert out.shape == x.shape


def test_unknown_implementation_is_named():
    with pytest.raises(ValueError, match="'sdpa'; valid: 'flash', 'blockwise'"):
        Attention("sdpa")


class _ExportedBlock(ms.nn.Cell):
    """A DiT block with static grid and pattern, as the Ascend graph sees it."""

    def __init__(self, config, grid, attention_cell):
        super().__init__()
        sequence = PackedSequence(config.sparse_ratio)

        def linear(n_in, n_out):
            return Linear(n_in, n_out, dtype=ms.bfloat16)

        self.block = DiTBlock(config, linear, sequence, attention_cell, attention_cell, True, ms.bfloat16)
        self.sequence = sequence
        self.grid = grid
        self.head_dim = config.head_dim

    def construct(self, x, e0, text):
        cos, sin = self.sequence.rope(self.grid, "token", self.head_dim)
        return self.block(x, e0, text, cos, sin, self.grid, "token")


class _WrongHeads(ms.nn.Cell):
    def construct(self, q, k, v):
        return ms.ops.flash_attention_score(q, k, v, 7, scalar_value=0.25, input_layout="BSND")


def _export(tmp_path, attention_cell, grid):
    config = DiTConfig(64, 128, 4, 8, 64, 32, 16, num_full_blocks=4)
    net = _ExportedBlock(config, grid, attention_cell)
    num_tokens = grid[0] * grid[1] * grid[2]
    x = Tensor(np.zeros((1, num_tokens, 64), np.float32)).astype(ms.bfloat16)
    e0 = Tensor(np.zeros((1, 6, 64), np.float32))
    text = Tensor(np.zeros((1, 16, 64), np.float32)).astype(ms.bfloat16)
    ms.export(net, x, e0, text, file_name=str(tmp_path / "block"), file_format="MINDIR")
    return tmp_path / "block.mindir"


@pytest.mark.parametrize("grid", [(2, 8, 8), (2, 7, 10)])
def test_ascend_graph_of_a_block_infers(tmp_path, monkeypatch, grid):
    monkeypatch.chdir(tmp_path)
    for kernel in (activations, rotary):
        monkeypatch.setattr(kernel, "on_ascend", lambda: True)
    assert _export(tmp_path, Attention("flash"), grid).read_bytes().count(b"FlashAttentionScore") > 0


def test_ascend_graph_with_a_wrong_call_is_rejected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, RuntimeError, TypeError)):
        _export(tmp_path, _WrongHeads(), (2, 8, 8))
