"""Layers that compute in HiF8: a linear layer, and attention inputs. M rows, K in, N out; B, N, H, D as in attention.

    y  = x8 w8^T / (s_x s_w) + b       x8 = round(s_x x), w8 = round(s_w w), s = scale_max_forward / amax
    dx = g8 w8 / (s_g s_w)             g8 = round(s_g dy),                   s_g = scale_max_backward / amax(dy)
    dw = g8^T x8 / (s_g s_x),  db = sum(dy)

The gradient passes straight through the roundings.
"""

from functools import partial

import mindspore as ms
from mindspore import Parameter, Tensor
from mindspore.common.initializer import initializer

from ospnext_ms import hif8_format
from ospnext_ms.hif8_format import SCALE_MAX_BACKWARD, SCALE_MAX_FORWARD
from ospnext_ms.kernels.hif8_backend import choose_backend
from ospnext_ms.kernels.hif8_operators import ALONE, Scale, held_parameter, held_tensor
from ospnext_ms.kernels.hif8_product import HiF8FrozenProduct, HiF8Product
from ospnext_ms.kernels.linear import add_bias
from ospnext_ms.models.layers import Linear
from ospnext_ms.quant.recipe import HiF8Recipe


class HiF8Linear(Linear):
    """Linear whose product is computed in HiF8, forward and backward; parameters and hooks are those of Linear.

    Input [..., in_channels] of any float dtype, output [..., out_channels] in `dtype`. Where amax is not finite, so is
    no number of the output.

    A layer that is not trained can hold its weight in 8 bits (`freeze`): `weight` is then the codes, and
    `code_scale` fp32 [1] the scale that they were rounded with. Output and gradient of the input stay the same numbers.

    Args:
        native: use the device's own HiF8; None: where it has one. group: see HiF8Recipe.
    """

    def __init__(self, in_channels, out_channels, has_bias=True, scale_max_forward=SCALE_MAX_FORWARD,
                 scale_max_backward=SCALE_MAX_BACKWARD, dtype=ms.float32, param_dtype=None, native=None,
                 group=ALONE):
        super().__init__(in_channels, out_channels, has_bias, dtype, param_dtype)
        native = choose_backend("auto", dtype=dtype).native if native is None else native
        recipe = HiF8Recipe(scale_max_forward, scale_max_backward, native, group)
        self.input_scale = Scale(recipe.scale_max_forward, recipe.group)
        self.weight_scale = Scale(recipe.scale_max_forward)
        product = native, dtype, scale_max_forward, scale_max_backward, group
        self.product = HiF8Product(*product)
        # Made where it is needed only: a Cell that no graph uses takes as long to compile as one that it does.
        self._frozen_product = partial(HiF8FrozenProduct, *product)
        self.native = native
        self.is_frozen = False

    def freeze(self):
        """Puts codes and their scale in the place of the weight, of its numbers where it has any yet.

        To be called before the weight is sharded and before anything is compiled. Raises ValueError where the weight
        is not finite.
        """
        weight = self.weight
        self.weight = held_parameter(weight.shape, self.native, weight.name)
        self.code_scale = Parameter(initializer("ones", (1,), ms.float32), requires_grad=False,
                                    name=weight.name.replace("weight", "code_scale"))
        if not weight.has_init:
            codes, scale = hif8_format.encode_scaled(weight.astype(ms.float32).asnumpy(), self.input_scale.scale_max)
            self.weight.set_data(held_tensor(codes, self.weight.dtype))
            self.code_scale.set_data(Tensor(scale))
        self.product = self._frozen_product()
        self.is_frozen = True

    def construct(self, x):
        weight = self.gather_weight(self.weight)
        seen = None
        if self.adapter is not None:
            x, seen = self.adapter.both(x)
        x_MK = x.reshape(-1, x.shape[-1])
        w_scale = self.code_scale if self.is_frozen else self.weight_scale(weight)
        y = self.product(x_MK, weight, self.input_scale(x_MK), w_scale)
        if self.has_bias:
            y = add_bias(y, self.bias.astype(self.dtype))
        y = y.reshape(*x.shape[:-1], weight.shape[0])
        return y if self.adapter is None else y + self.adapter(seen)


def hif8_linear_factory(recipe, dtype, param_dtype):
    """(in_channels, out_channels) -> HiF8Linear of a HiF8Recipe."""

    def linear(in_channels, out_channels):
        return HiF8Linear(in_channels, out_channels, True, recipe.scale_max_forward, recipe.scale_max_backward, dtype,
                          param_dtype, recipe.native, recipe.group)

    return linear
