"""The networks of OSP-Next in PyTorch: a second opinion, written from the definitions and not from the MindSpore code.

It serves three purposes: to check the MindSpore networks against (same parameter names, same numbers), to train the
tiny model family on a GPU, and to measure speed where only PyTorch runs. Skiparse-2D is done here the way the paper
defines it - pad the grid, rearrange with einops, mask the padded keys - so that a mistake in the packed order of
`ospnext_ms.skiparse` cannot hide in both. Only the shape configurations of `ospnext_ms.models.config` are shared.
"""
