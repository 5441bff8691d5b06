"""Blocks of a kind are marked as one graph, on Ascend alone."""

from mindspore import nn

from ospnext_ms.kernels import graphs


def test_cells_of_a_kind_share_a_mark(monkeypatch):
    cells = [nn.Dense(2, 2) for _ in range(3)]
    graphs.compile_once(cells, ["full", "sparse", "full"])
    assert not any("lazy_inline_" in cell.cell_init_args for cell in cells)
    monkeypatch.setattr(graphs, "on_ascend", lambda: True)
    graphs.compile_once(cells, ["full", "sparse", "full"])
    marks = [cell.cell_init_args for cell in cells]
    assert marks[0] == marks[2] != marks[1]
    assert all(mark.startswith("lazy_inline_") for mark in marks)
