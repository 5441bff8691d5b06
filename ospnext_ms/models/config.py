"""Shapes of the networks. Framework-free, so that tools can read them without MindSpore."""

from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ospnext_ms.hif8_format import MAX_VALUE, SCALE_MAX_BACKWARD, SCALE_MAX_FORWARD, BackendName

# Far above any network's: a slip of the keyboard should not cost gigabytes or hours before it is noticed.
MAX_WIDTH, MAX_COUNT, MAX_SPARSE_RATIO = 2**24, 1024, 16
# Widths of the VAE's levels in units of its base width, whether time is halved between them, residual blocks a level.
VAE_WIDTHS = (1, 2, 4, 4)
VAE_TIME_LEVELS = (False, True, True)
VAE_BLOCKS = {"encoder": 2, "decoder": 3}


def _require_choices(section: str, config: Any) -> None:
    """ValueError for the first field whose value is not one of those that its annotation, a Literal, lists."""
    for name, hint in get_type_hints(type(config)).items():
        choices = [choice for option in (hint, *get_args(hint)) for choice in get_args(option)
                   if get_origin(option) is Literal]
        value = getattr(config, name)
        if choices and value not in choices and not (value is None and type(None) in get_args(hint)):
            raise ValueError(f"{section}.{name} is {value!r}; valid: {', '.join(map(repr, choices))}")


def _require_in_range(section: str, config: Any, highest: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not 1 <= value <= highest:
            raise ValueError(f"{section}.{name} is {value}; it must be from 1 to {highest}")


@dataclass(frozen=True)
class QuantConfig:
    """How HiF8 is computed where `quant` or `quant_attention` is "hif8".

    `backend`: the device's own HiF8 (native), exact emulation (emulate), or native where a probe agrees (auto).
    `scale_scope`: a rank scales what it holds (local, as OSP-Next was trained), or the ranks that share a video find
    one scale, so that results do not depend on their number (global). Largest numbers are scaled to `scale_max_forward`
    (activations, weights, q, k, v) and `scale_max_backward` (gradients). `centre_keys`: attention is given k less its
    mean over the tokens, which changes no number but those that are rounded. `plain_ends`: so many blocks at either end
    of the network are not quantised.
    """

    backend: BackendName = "auto"
    scale_scope: Literal["local", "global"] = "local"
    scale_max_forward: float = SCALE_MAX_FORWARD
    scale_max_backward: float = SCALE_MAX_BACKWARD
    centre_keys: bool = False
    plain_ends: int = 0

    def __post_init__(self):
        _require_choices("quant_config", self)
        for name in ("scale_max_forward", "scale_max_backward"):
            value = getattr(self, name)
            if not 0 < value <= MAX_VALUE:
                raise ValueError(f"quant_config.{name} is {value}; it must be above 0 and at most {MAX_VALUE:g}")


@dataclass(frozen=True)
class DiTConfig:
    """Shape of the diffusion transformer (design of Wan2.1, arXiv 2503.20314; sparsity of OSP-Next, arXiv 2605.28691).

    `skiparse="dual_end"` makes the first and the last `num_full_blocks / 2` blocks full and the blocks between them
    alternately token and group sparse; `"full"` makes every block full (that is Wan2.1 itself).
    """

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    freq_dim: int
    text_dim: int
    text_len: int
    in_channels: int = 16
    out_channels: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)
    skiparse: Literal["dual_end", "full"] = "dual_end"
    sparse_ratio: int = 2
    num_full_blocks: int | None = None
    quant: Literal["hif8"] | None = None
    quant_attention: Literal["hif8"] | None = None
    quant_config: QuantConfig = QuantConfig()

    def __post_init__(self):
        object.__setattr__(self, "patch_size", tuple(self.patch_size))
        _require_in_range("dit", self, MAX_WIDTH, "dim", "ffn_dim", "freq_dim", "text_dim", "text_len", "in_channels",
                          "out_channels")
        _require_in_range("dit", self, MAX_COUNT, "num_heads", "num_layers")
        _require_in_range("dit", self, MAX_SPARSE_RATIO, "sparse_ratio")
        _require_choices("dit", self)
        if self.quant_config != QuantConfig() and not (self.quant or self.quant_attention):
            raise ValueError("dit.quant_config is given, but neither dit.quant nor dit.quant_attention is 'hif8'")
        if not 0 <= self.quant_config.plain_ends <= self.num_layers // 2:
            raise ValueError(f"dit.quant_config.plain_ends is {self.quant_config.plain_ends}; with {self.num_layers} "
                             f"layers it must be from 0 to {self.num_layers // 2}")
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise ValueError(f"dit.dim {self.dim} over dit.num_heads {self.num_heads} must be a whole, even head size")
        if self.freq_dim % 2:
            raise ValueError(f"dit.freq_dim is {self.freq_dim}; it must be even (half cosine, half sine)")
        if len(self.patch_size) != 3 or self.patch_size[0] != 1 or min(self.patch_size) < 1:
            raise ValueError(f"dit.patch_size is {self.patch_size}; it must be (1, height, width)")
        self._check_full_blocks()

    def _check_full_blocks(self) -> None:
        n = self.num_full_blocks
        if self.skiparse == "dual_end":
            valid = list(range(0, self.num_layers // 2 + 1, 4))
            if n not in valid:
                raise ValueError(f"dit.num_full_blocks is {n}; with {self.num_layers} layers valid values are {valid}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.num_heads

    @property
    def quantised_blocks(self) -> range:
        """Numbers of the blocks to which `quant` and `quant_attention` apply."""
        return range(self.quant_config.plain_ends, self.num_layers - self.quant_config.plain_ends)

    @property
    def block_patterns(self) -> tuple[str, ...]:
        """Pattern of every block, in order: a tuple of "full", "token" and "group" (paper: hybrid layout)."""
        if self.skiparse == "full":
            return ("full",) * self.num_layers
        assert self.num_full_blocks is not None
        half = self.num_full_blocks // 2
        sparse = range(half, self.num_layers - half)
        return tuple(("token" if i % 2 == 0 else "group") if i in sparse else "full" for i in range(self.num_layers))


@dataclass(frozen=True)
class UMT5Config:
    """Shape of the UMT5 text encoder; XXL is 256384 / 4096 / 10240 / 64 / 24."""

    vocab_size: int
    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    num_buckets: int = 32

    def __post_init__(self):
        _require_in_range("text_encoder", self, MAX_WIDTH, "vocab_size", "dim", "ffn_dim", "num_buckets")
        _require_in_range("text_encoder", self, MAX_COUNT, "num_heads", "num_layers")
        if self.dim % self.num_heads:
            raise ValueError(f"text_encoder.dim {self.dim} is not divisible by num_heads {self.num_heads}")


@dataclass(frozen=True)
class VAEConfig:
    """Shape of WanVAE: base width (96 in Wan2.1) and latent channels. Width multipliers are (1, 2, 4, 4)."""

    dim: int
    z_dim: int = 16

    def __post_init__(self):
        _require_in_range("vae", self, MAX_WIDTH, "dim", "z_dim")
