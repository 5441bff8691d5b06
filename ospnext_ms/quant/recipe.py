"""How a network is quantised (OSP-Next, arXiv 2605.28691): scales, back end, and among whom scales are shared."""

from dataclasses import dataclass

import mindspore as ms

from ospnext_ms.hif8_format import MAX_VALUE, SCALE_MAX_BACKWARD, SCALE_MAX_FORWARD
from ospnext_ms.kernels.collectives import ProcessGroup
from ospnext_ms.kernels.hif8_backend import choose_backend


@dataclass(frozen=True)
class HiF8Recipe:
    """Per-tensor current scaling: what is quantised is first scaled so that its largest |x| becomes `scale_max`.

    Args:
        scale_max_forward: of activations, weights, and q, k, v of the attention. scale_max_backward: of gradients.
        native: use the device's own HiF8.
        centre_keys: k less its mean is what attention is given.
        group: ranks that share one scale of an activation or gradient; a single rank scales what it has. Weights are
            whole on every rank and need no group.
    """

    scale_max_forward: float = SCALE_MAX_FORWARD
    scale_max_backward: float = SCALE_MAX_BACKWARD
    native: bool = False
    group: ProcessGroup = ProcessGroup()
    centre_keys: bool = False

    def __post_init__(self):
        for name in ("scale_max_forward", "scale_max_backward"):
            value = getattr(self, name)
            if not 0 < value <= MAX_VALUE:
                raise ValueError(f"{name} is {value}; it must be above 0 and at most {MAX_VALUE:g}")


def describe(config, runtime):
    """What a run shows its user of a DiTConfig: the back end and why it was chosen; empty where nothing is quantised.

    Args:
        runtime: what has `compiled` and `dtype`, such as runtime.Runtime.

    Raises:
        ValueError: the configured back end does not exist here.
    """
    what = [name for name, value in (("linears", config.quant), ("attention", config.quant_attention)) if value]
    if not what:
        return ""
    backend = choose_backend(config.quant_config.backend, runtime.compiled, runtime.dtype)
    return f"{backend}; quantised: {' and '.join(what)}"


def make_recipe(config, video_group=ProcessGroup(), compiled=True, dtype=ms.float32):  # noqa: B008  (it is frozen)
    """HiF8Recipe of a QuantConfig on the device at hand.

    Args:
        video_group: ProcessGroup of the ranks that share a video. compiled, dtype: see choose_backend.

    Raises:
        ValueError: the configured back end does not exist here.
    """
    group = video_group if config.scale_scope == "global" else ProcessGroup()
    native = choose_backend(config.backend, compiled, dtype).native
    return HiF8Recipe(config.scale_max_forward, config.scale_max_backward, native, group, config.centre_keys)
