"""Memory of one device, part by part, in bytes. What is counted is what the code in models/ and training/ keeps.

N tokens of this device, L text tokens, C width, F hidden width, H heads. Numbers in formulas are bytes a value: 4 for
fp32, `c` for the compute dtype, `r` for the residual stream.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ospnext_ms.models.config import DiTConfig, UMT5Config, VAEConfig
from ospnext_ms.models.parameters import Shapes
from ospnext_ms.models.sizes import TEMPORAL_COMPRESSION
from ospnext_ms.parallel.degrees import layout
from ospnext_ms.planning import shapes
from ospnext_ms.planning.workload import Workload
from ospnext_ms.skiparse import SkiparsePlan
from ospnext_ms.storage.hif8_weights import quantised_names
from ospnext_ms.training.chunks import CHUNK_SIZE

# FlashAttentionScore keeps the maximum and the sum of the softmax, 8 fp32 values each.
_FLASH_STATISTICS = 64
# Parameters of the VAE for dim 1; maps of full size, dim channels and the frames of a latent frame alive at once; and
# what its convolutions in time read, in frames of full size and dim channels: 7 + 3 + 1.6 + 0.7 by level.
_VAE_WEIGHTS, _VAE_MAPS, _VAE_EARLIER, _PAST_FRAMES = 13_800, 10, 12.3, 2
# Free pieces between tensors that fit none of the others, as a share of one block's activations where blocks are
# recomputed, and of a block's work in a forward pass; fitted to the dry run, which has no virtual memory
# (docs/ascend.md). Beside a frozen network, whose blocks keep less, they are a larger share.
_FRAGMENTS, _FRAGMENTS_OF_FROZEN = 0.3, 0.5


@dataclass(frozen=True)
class Memory:
    """Bytes by part. `lasting` parts are there all the time; of `phases` one at a time is, so the largest counts."""

    lasting: dict
    phases: dict

    @property
    def total(self) -> int:
        """Peak of the device."""
        return sum(self.lasting.values()) + max((sum(phase.values()) for phase in self.phases.values()), default=0)


def estimate(workload: Workload, recompute: bool | None = None) -> Memory:
    """Memory of a Workload; `recompute` instead of the workload's own."""
    recompute = workload.recompute if recompute is None else recompute
    if workload.trained is None:
        return _generation(workload)
    parameters = shapes.dit_parameters(workload.dit)
    held = shapes.shard_count(parameters, workload.parallel.parameter_shard)
    trained = held if workload.trained == "all" else shapes.lora_count(parameters, workload.lora)
    lasting = {"weights": _weights(workload, parameters), "optimiser": 8 * trained}
    if workload.trained == "lora":
        lasting["adapters"] = 4 * trained
    if workload.ema:
        lasting["EMA"] = 4 * trained
    copies = 2 if workload.batches > 1 else 1
    backward = {"gradients": copies * 4 * trained, **_activations(workload, recompute),
                **_rounded(workload, parameters), **_weight_copies(workload, parameters, recompute)}
    largest = max(shapes.shard_count({name: shape}, workload.parallel.parameter_shard)
                  for name, shape in parameters.items())
    # On Ascend of one tensor at a time: its scaled gradient, then its average's change. Elsewhere a part is one graph.
    part = 2 if workload.flash else CHUNK_SIZE
    update = {"gradients": 4 * trained, "scaled gradients of a part": 4 * min(trained, part * largest)}
    phases = {"backward": backward, "update": update}
    watched = workload.watched
    if watched is not None and watched.vae is not None:
        # It stays from the first validation on.
        lasting["VAE"] = 4 * _VAE_WEIGHTS * watched.vae.dim**2
        phases["validation, denoising"] = {"one block's work": _forward_work(watched),
                                           "latents and patches": _ends(watched),
                                           **_weight_copies(watched, parameters, recompute=True)}
        phases["validation, decoding"] = _vae_work(watched.vae, watched)
    return Memory(lasting, phases)


def _generation(workload: Workload) -> Memory:
    """The text encoder is let go before the transformer is loaded, beside which the VAE stays from the first video on;
    each has its work while it computes.
    """
    parameters = shapes.dit_parameters(workload.dit)
    transformer, adapter_bytes = _on_device(workload, parameters)
    adapters = {"adapters": adapter_bytes} if adapter_bytes else {}
    vae = {"VAE": 4 * _VAE_WEIGHTS * workload.vae.dim**2} if workload.vae else {}
    phases = {"denoising": {"weights": transformer, **adapters, **vae, "one block's work": _forward_work(workload),
                            "latents and patches": _ends(workload),
                            **_weight_copies(workload, parameters, recompute=True)}}
    if workload.text_encoder is not None:
        phases["text"] = _text(workload.text_encoder, workload)
    if workload.vae is not None:
        phases["decoding"] = {"transformer": transformer, **adapters, **_staying(workload), **vae,
                              **_vae_work(workload.vae, workload)}
    return Memory({}, phases)


def _text(encoder: UMT5Config, workload: Workload) -> dict[str, int]:
    """The text encoder and one text. The position biases, fp32, depend on nothing but weights, and MindSpore's graph
    has those of all blocks at once (docs/ascend.md: the text encoder's peak).
    """
    length = workload.dit.text_len
    return {"text encoder": workload.stored * shapes.umt5_count(encoder),
            "position biases": 4 * encoder.num_layers * encoder.num_heads * length**2,
            "one block's work": 8 * length * encoder.ffn_dim}


def _ends(workload: Workload) -> int:
    """The whole video's latent and velocity, in fp32, each as it is and as patches."""
    frames, height, width = workload.grid
    patch_t, patch_h, patch_w = workload.dit.patch_size
    values = frames * height * width * patch_t * patch_h * patch_w
    return 2 * 4 * workload.batch * values * (workload.dit.in_channels + workload.dit.out_channels)


def _quantised(workload: Workload, parameters: Shapes) -> Shapes:
    """The weights of the products in HiF8."""
    if workload.dit.quant is None:
        return {}
    blocks = tuple(f"blocks.{i}." for i in workload.dit.quantised_blocks)
    return {name: parameters[name] for name in quantised_names(parameters) if name.startswith(blocks)}


def _codes(workload: Workload, parameters: Shapes) -> Shapes:
    """The weights that are held in 8 bits: those computed with in HiF8, where they are not trained."""
    return {} if workload.trained == "all" else _quantised(workload, parameters)


def _of_first_block(weights: Shapes) -> Shapes:
    """Those of the block that the first belongs to."""
    block = next(iter(weights)).split(".")[1]
    return {name: shape for name, shape in weights.items() if name.split(".")[1] == block}


def _weights(workload: Workload, parameters: Shapes) -> int:
    """Weights as they are held by this device."""
    shard, codes = workload.parallel.parameter_shard, _codes(workload, parameters)
    others = {name: shape for name, shape in parameters.items() if name not in codes}
    return shapes.shard_count(codes, shard) + workload.stored * shapes.shard_count(others, shard)


def _on_device(workload: Workload, parameters: Shapes) -> tuple[int, int]:
    """(weights, adapters) of a generation. Those of blocks that come in turn have room for two blocks (see
    models.block_by_block), once for plain and once for quantised ones; adapters, whole on every process, are taken to
    be in all blocks.
    """
    adapters = workload.compute * workload.adapter_values
    if not workload.offload:
        return _weights(workload, parameters), adapters
    dit = workload.dit
    first_of = {i in dit.quantised_blocks: f"blocks.{i}." for i in reversed(range(dit.num_layers))}
    rest = {name: shape for name, shape in parameters.items() if not name.startswith("blocks.")}
    block = sum(_weights(workload, {name: shape for name, shape in parameters.items() if name.startswith(prefix)})
                for prefix in first_of.values())
    return _weights(workload, rest) + 2 * block, 2 * len(first_of) * adapters // dit.num_layers


def _staying(workload: Workload) -> dict[str, int]:
    """What stays between the calls of blocks that come in turn: the place of the hidden states, and cosines and sines
    of each order, in fp32. While they compute it is a part of one block's work.
    """
    if not workload.offload:
        return {}
    dit, orders = workload.dit, set(_orders(workload.dit))
    values = workload.batch * workload.residual * dit.dim + len(orders) * 2 * 4 * dit.head_dim
    return {"hidden states and rotations": tokens_of_device(workload) * values}


def host_weights(workload: Workload) -> int:
    """Weights and adapters that a process loads, wherever they go afterwards."""
    held = _weights(workload, shapes.dit_parameters(workload.dit))
    if workload.trained is None:
        return held + workload.compute * workload.adapter_values
    return held + estimate(workload).lasting.get("adapters", 0)


def block_bytes(workload: Workload) -> int:
    """Weights and adapters of all blocks, which go to the device once a forward where they come in turn."""
    parameters = shapes.dit_parameters(workload.dit)
    blocks = {name: shape for name, shape in parameters.items() if name.startswith("blocks.")}
    return _weights(workload, blocks) + workload.compute * workload.adapter_values


def _vae_work(vae: VAEConfig, workload: Workload) -> dict[str, int]:
    """A chunk of frames at the full size, where the decoder is widest beside its size; and two earlier frames for every
    convolution in time, those of the last chunk and those for the next. In fp32.
    """
    height, width = (min(pixels, workload.vae_tile or pixels) for pixels in workload.video[:2])
    frame = 4 * vae.dim * height * width
    return {"frames under way": _VAE_MAPS * TEMPORAL_COMPRESSION * frame,
            "earlier frames": int(2 * _VAE_EARLIER * _PAST_FRAMES * frame)}


def outside(workload: Workload) -> dict[str, int]:
    """{what: bytes} of a device that nothing here plans and no dry run sees.

    HCCL takes two buffers of HCCL_BUFFSIZE, 200 MB where it is not set, for every group of ranks (CANN's documentation
    of that variable). What CANN's context and the workspaces of its operators take is an assumption.
    """
    parallel = workload.parallel
    groups = layout(workload.devices, parallel.skiparse_parallel, parallel.ulysses_parallel, parallel.parameter_shard,
                    rank=0)
    count = len({ranks for ranks in groups.values() if len(ranks) > 1})
    return {"HCCL's buffers": count * 2 * 200 * 2**20, "CANN's context and workspaces (assumed)": 3 * 10**9}


def tokens_of_device(workload: Workload) -> int:
    """Most tokens that a device holds in any block."""
    parallel = workload.parallel
    plan = SkiparsePlan(workload.grid, workload.dit.sparse_ratio, parallel.skiparse_parallel, parallel.ulysses_parallel)
    return max(len(plan.rank_tokens(pattern, s, u)) for pattern in set(_orders(workload.dit))
               for s in range(parallel.skiparse_parallel) for u in range(parallel.ulysses_parallel))


def _orders(config: DiTConfig) -> tuple[str, ...]:
    """Orders the sequence stands in."""
    return tuple(pattern for pattern in config.block_patterns if pattern != "full") or ("token",)


def block_activations(config: DiTConfig, tokens: int, compute: int, flash: bool, pairs: float = 0,
                      frozen: bool = False) -> dict[str, float]:
    """{part of a block: bytes kept for its backward pass} for one sample.

    Args:
        config: DiTConfig. tokens: N of this device. compute: c. flash: FlashAttentionScore, which keeps no scores.
        pairs: query-key pairs that the device attends to in this block (without flash their weights are kept).
        frozen: only adapters of the attention's linears are trained, so that nothing is kept for the gradients of
            scales, gates and the feed-forward network's weights.
    """
    c, dim, heads, text = compute, config.dim, config.num_heads, config.text_len
    norm = 4 + c                                     # fp32 input; result in the compute dtype, input of the linears
    modulated = norm + (0 if frozen else 4)          # and the normalised values, for the gradient of the scale
    rotated = 8 + c                                  # RMS norm: fp32 input and x / rms; then q or k as attended to
    gated = 0 if frozen else 4                       # fp32 output, for the gradient of the gate
    attended = c * dim + (_FLASH_STATISTICS * heads if flash else 0)
    # Without flash q, k, v are held a second time, with the heads in front, as is the result.
    turned = 0 if flash else 4 * c
    score = 0 if flash else 4 * heads
    hidden = 2 * c if flash else 5 * c               # GELU's input and output; written out with a sigmoid, three more
    unused = c if frozen else 0                      # inputs of the feed-forward network's linears
    return {
        "self-attention": tokens * ((modulated + 2 * rotated + c + gated + turned) * dim + attended) + score * pairs,
        "cross-attention": tokens * ((norm + rotated + turned / 2) * dim + attended + score * text)
                           + text * (rotated + c + turned / 2) * dim,
        "feed-forward": tokens * ((modulated + gated - unused) * dim + (hidden - unused) * config.ffn_dim),
    }


def _activations(workload: Workload, recompute: bool) -> dict[str, int]:
    """What the forward pass leaves for the backward pass, and the gradients under way in it."""
    dit, batch, tokens = workload.dit, workload.batch, tokens_of_device(workload)
    lora = workload.lora if workload.trained == "lora" else None
    frozen = lora is not None and not any(lora.fits(f"blocks.0.ffn.{layer}") for layer in (0, 2))
    blocks = [sum(block_activations(dit, tokens, workload.compute, workload.flash, pairs, frozen).values())
              for pairs in _pairs(workload)]
    # When everything of a block is there: those of the residual stream and on both sides of GELU.
    in_flight = batch * tokens * (4 * dit.dim + 2 * workload.compute * dit.ffn_dim)
    inputs = batch * tokens * workload.residual * dit.dim * dit.num_layers
    # With guidance both branches of the velocity wait for the backward pass.
    times = workload.forwards if workload.trained == "lora" else 1
    if recompute:
        block, share = int(batch * max(blocks)), _FRAGMENTS_OF_FROZEN if frozen else _FRAGMENTS
        return {"inputs of the blocks": times * inputs, "one block's activations": block,
                "gradients under way": in_flight, "fragments": int(share * block)}
    return {"activations": int(times * batch * sum(blocks)), "gradients under way": in_flight}


def _rounded(workload: Workload, parameters: Shapes) -> dict[str, int]:
    """Operands of products on their way to 8 bits, in fp32, which the backward pass of a block reads all at once:
    natively, the weights that are trained, and the widest activation as it is and scaled; emulated, all operands of a
    block, scaled and with what rounds them (docs/ascend.md: HiF8).
    """
    quantised = _quantised(workload, parameters)
    if not quantised:
        return {}
    dit, tokens = workload.dit, workload.batch * tokens_of_device(workload)
    weights = shapes.count(_of_first_block(quantised)) if workload.trained == "all" else 0
    if is_emulated(workload):
        return {"operands being rounded": 2 * 4 * (weights + tokens * (6 * dit.dim + dit.ffn_dim))}
    return {"operands being rounded": 4 * weights + 2 * 4 * tokens * dit.ffn_dim}


def is_emulated(workload: Workload) -> bool:
    """Whether its HiF8 is planned as emulated; "auto" is native, as on an Ascend 950."""
    quantization = workload.dit.quant_config
    return quantization is not None and quantization.backend == "emulate"


def _pairs(workload: Workload) -> Iterator[float]:
    """Most query-key pairs of a device in every block: heads are shared where a sub-sequence is, so of whole heads."""
    parallel = workload.parallel
    plan = SkiparsePlan(workload.grid, workload.dit.sparse_ratio, parallel.skiparse_parallel, parallel.ulysses_parallel)
    for pattern in workload.dit.block_patterns:
        if pattern == "full":
            yield plan.num_tokens**2 / workload.degree
        else:
            lengths = plan.lengths(pattern)
            yield max(sum(lengths[i] ** 2 for i in plan.owned_sub_sequences(pattern, s))
                      for s in range(parallel.skiparse_parallel)) / parallel.ulysses_parallel


def _weight_copies(workload: Workload, parameters: Shapes, recompute: bool) -> dict[str, int]:
    """Weights in the dtype and wholeness in which they are used, where that is not how they are stored."""
    sharded, c = workload.parallel.parameter_shard > 1, workload.compute
    if codes := _codes(workload, parameters):
        # The decoded numbers of one layer at a time, and the codes of one block where they are gathered.
        copies = {"one layer's decoded weight": c * max(shapes.count({name: codes[name]}) for name in codes)}
        return copies | ({"gathered codes": shapes.count(_of_first_block(codes))} if sharded else {})
    if not sharded and workload.stored == c:
        return {}
    name = "gathered weights" if sharded else "weights in the compute dtype"
    in_block = {key: shape for key, shape in parameters.items() if key.startswith("blocks.0.")}
    linear = {key: shape for key, shape in (in_block if recompute else parameters).items()
              if shapes.is_linear_weight(shape)}
    copies = {name: c * shapes.count(linear)}
    if sharded and workload.trained == "all":
        largest = max(shape[0] * shape[1] for shape in in_block.values() if shapes.is_linear_weight(shape))
        copies["gradient before it is scattered"] = (c + 4) * largest
    return copies


def _forward_work(workload: Workload) -> int:
    """Tensors of one block alive at once without a backward pass, in its self-attention or in its feed-forward network,
    and for the latter the free pieces between them.
    """
    dit, c = workload.dit, workload.compute
    values = workload.batch * tokens_of_device(workload)
    attention = values * dit.dim * (workload.residual + 4 + 4 + c + 3 * c + 3 * 4 + c)
    feed_forward = values * (dit.dim * (workload.residual + 4 + c) + 2 * c * dit.ffn_dim)
    if dit.quant is not None and dit.quantised_blocks:
        # The widest activation in fp32 as it is and scaled; emulated, its magnitude and what rounds it too.
        feed_forward += (4 if is_emulated(workload) else 2) * 4 * values * dit.ffn_dim
    return int(max(attention, (1 + _FRAGMENTS) * feed_forward))
