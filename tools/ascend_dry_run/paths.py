"""The named cases, and the cases of a YAML file: which function of cases.py, with which options, on which rank."""

from dataclasses import dataclass, field, replace

from ospnext_ms.config.reader import ConfigError
from ospnext_ms.models.sizes import SPATIAL_COMPRESSION, latent_frames
from ospnext_ms.planning import memory
from ospnext_ms.planning.workload import read_workload

# What of a DiTConfig a case is given.
SHAPE = ("dim", "ffn_dim", "num_heads", "num_layers", "num_full_blocks", "freq_dim", "text_dim", "text_len", "skiparse",
         "sparse_ratio", "quant")
TEXT_SHAPE = ("vocab_size", "dim", "ffn_dim", "num_heads", "num_layers", "num_buckets")


@dataclass(frozen=True)
class Job:
    """A case of cases.py with its options, and the number of processes of the world that it is compiled for."""

    case: str
    options: dict = field(default_factory=dict)
    size: int = 1


def _sharing(case, skiparse, ulysses, shard=1, **options):
    degrees = [skiparse, ulysses, shard]
    return Job(case, {"degrees": degrees, **options}, size=max(skiparse * ulysses, shard))


PATHS = {
    "forward": Job("forward"),
    "forward-by-block": Job("by-block"),
    "forward-by-block-hif8-native": Job("by-block", {"quant": "hif8", "native": True}),
    "forward-by-block-4x2": _sharing("by-block", 4, 2),
    "gradient": Job("gradient"),
    "gradient-without-recompute": Job("gradient", {"recompute": False}),
    "step": Job("step", {"batches": 2}),
    "step-lora": Job("step", {"rank": 8}),
    "hif8-emulated-forward": Job("forward", {"quant": "hif8"}),
    "hif8-emulated-gradient": Job("gradient", {"quant": "hif8"}),
    "hif8-native-forward": Job("forward", {"quant": "hif8", "native": True}),
    "hif8-native-gradient": Job("gradient", {"quant": "hif8", "native": True}),
    "forward-4x1": _sharing("forward", 4, 1),
    "forward-4x2": _sharing("forward", 4, 2),
    "forward-2x2": _sharing("forward", 2, 2),
    "gradient-4x1": _sharing("gradient", 4, 1),
    "step-4x2-sharded": _sharing("step", 4, 2, 8),
    "gradient-2x2": _sharing("gradient", 2, 2),
    "umt5": Job("umt5"),
    "vae": Job("vae"),
    "policy": Job("policy"),
}


def from_config(path, overrides, layers, full, world):
    """({title: Job}, Workload) of what a run of a YAML file compiles on one of `world` processes.

    Args:
        layers, full: blocks, and full ones among them, instead of the configuration's; a whole 14B takes long.

    Raises:
        ValueError: see planning.workload.read_workload; degrees that do not fit `world`.
    """
    work = read_workload(path, overrides, world, None)
    parallel = work.parallel
    if parallel.skiparse_parallel * parallel.ulysses_parallel > world:
        raise ConfigError(f"--world is {world}, but {path} shares a video among "
                          f"{parallel.skiparse_parallel * parallel.ulysses_parallel} processes")
    work = replace(work, dit=replace(work.dit, num_layers=layers or work.dit.num_layers,
                                     num_full_blocks=work.dit.num_full_blocks if full is None else full))
    shape = {name: getattr(work.dit, name) for name in SHAPE}
    options = {"grid": list(work.grid), "batch": work.batch, "degrees": [
        parallel.skiparse_parallel, parallel.ulysses_parallel, parallel.parameter_shard], **shape}
    if work.dit.quant:
        options["native"] = not memory.is_emulated(work)
    if work.trained is None:
        return {"forward": Job("by-block" if work.offload else "forward", options, world), **_coders(work)}, work
    options |= {"recompute": work.recompute, "residual_dtype": "fp32" if work.residual == 4 else "bf16"}
    if work.trained == "lora":
        options |= {"rank": work.lora.rank, "targets": list(work.lora.targets)}
    if work.run_mode == "post_train":
        return {"policy": Job("policy", options, world), **_coders(work)}, work
    return {"step": Job("step", options | {"batches": min(work.batches, 2)}, world)}, work


def _coders(work):
    """The networks beside the transformer: one text, and the frames of one video, whole or by tiles."""
    encoder, tile = work.text_encoder, work.vae_tile
    height, width, frames = work.video
    sizes = {name: min(pixels, tile or pixels) // SPATIAL_COMPRESSION for name, pixels in (
        ("height", height), ("width", width))}
    return {"umt5": Job("umt5", {name: getattr(encoder, name) for name in TEXT_SHAPE}),
            "vae": Job("vae", {"dim": work.vae.dim, "frames": latent_frames(frames), "parts": ["decode"], **sizes})}
