"""What the quantisation of a DiTConfig puts in the place of a network's plain layers."""

import mindspore as ms

from ospnext_ms.kernels.attention import Attention, default_attention
from ospnext_ms.kernels.collectives import ProcessGroup
from ospnext_ms.quant.hif8_attention import AttentionInputs, HiF8Attention
from ospnext_ms.quant.hif8_linear import HiF8Linear, hif8_linear_factory
from ospnext_ms.quant.recipe import make_recipe


def quantized_parts(config, dtype=ms.float32, param_dtype=None, video_group=None, compiled=True):
    """Keyword arguments of OSPNextDiT that make it compute as the configuration says; none where nothing is quantised.

    q, k and v of the video are quantised before they are ordered and sent, all tokens with one scale. Where several
    ranks share a video and each has scales of its own, which mean nothing to the others, they are quantised where they
    are attended to.

    Args:
        config: DiTConfig. dtype: compute dtype. param_dtype: storage dtype of the weights, default `dtype`.
        video_group: ProcessGroup of the ranks that share a video, None for one.
        compiled: whether the network will be compiled, see choose_backend.

    Raises:
        ValueError: the configured back end does not exist here.
    """
    if not (config.quant or config.quant_attention):
        return {}
    video_group = video_group or ProcessGroup()
    recipe = make_recipe(config.quant_config, video_group, compiled, dtype)
    parts = {}
    if config.quant:
        parts["linear"] = hif8_linear_factory(recipe, dtype, param_dtype or dtype)
    if config.quant_attention:
        attention = Attention(default_attention(dtype))
        # Here all keys of a call are on every rank: text always is, and video once it is attended to.
        quantized = HiF8Attention(attention, AttentionInputs(recipe, dtype))
        parts["cross_attention"] = quantized
        if video_group.size > recipe.group.size:
            parts["attention"] = quantized
        else:
            parts |= {"attention": attention, "attention_inputs": AttentionInputs(recipe, dtype, video_group)}
    return parts


def freeze_linears(net):
    """Makes every HiF8Linear of a network hold its weight in 8 bits, see HiF8Linear.freeze: {name of the codes: name of
    their scale}. Before its weights are sharded, loaded or used."""
    frozen = [cell for _, cell in net.cells_and_names() if isinstance(cell, HiF8Linear)]
    for cell in frozen:
        cell.freeze()
    names = {id(parameter): name for name, parameter in net.parameters_and_names()}
    return {names[id(cell.weight)]: names[id(cell.code_scale)] for cell in frozen}
