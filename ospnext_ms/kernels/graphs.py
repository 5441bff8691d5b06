"""How a network becomes a graph."""

from ospnext_ms.kernels.device import on_ascend


def compile_once(cells, kinds):
    """Cells of one kind become one graph that is called with the weights of each, where gradients of them are compiled
    for Ascend.

    What MindSpore calls lazy inlining. Without it a compiled gradient keeps most of what recomputation should compute
    anew (measured in the dry run, docs/ascend.md); our reading, not proven, is that what is computed twice in one
    graph is recognised and merged again. To be called before anything is compiled.

    Args:
        cells: of the same layers and shapes. kinds: one for each; those of equal kinds take the same branches.
    """
    if on_ascend():
        for cell, kind in zip(cells, kinds, strict=True):
            cell.cell_init_args = f"lazy_inline_{type(cell).__name__}_{kind}"
