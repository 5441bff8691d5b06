"""The paths of the product at their real sizes: what the table of docs/ascend.md is made of.

Each is what a YAML file compiles on rank 0. Deep networks have fewer blocks here: blocks of a kind are one shape, so a
block more tells nothing new about operators, and its memory is that of the others.
"""

from dataclasses import dataclass

from ospnext_ms.planning import memory
from tools.ascend_dry_run.paths import Job, from_config
from tools.ascend_dry_run.run import run_case

GENERATE, TRAIN, POST_TRAIN = (f"yaml_configs/{mode}/14b.yaml" for mode in ("generate", "train", "post_train"))
_EMULATED, _NATIVE = ("model.dit.quant_config.backend=emulate",), ("model.dit.quant_config.backend=native",)
# Phase of planning.memory in which a case has its peak, and what lies beside it then of other networks.
_PHASES = {"forward": ("denoising", ("VAE",)), "umt5": ("text", ()),
           "vae": ("decoding", ("transformer", "hidden states and rotations"))}


@dataclass(frozen=True)
class Real:
    """A path: the job of a YAML file whose title is `part`, changed by `overrides`, with `layers` blocks, `full` of
    them full (None: the file's), of one of `world` processes.
    """

    config: str
    part: str
    layers: int | None = 8
    full: int | None = 4
    world: int = 1
    overrides: tuple = ()

    def job(self):
        """(Job, Workload)."""
        jobs, work = from_config(self.config, self.overrides, self.layers, self.full, self.world)
        return jobs[self.part], work

    def blocks(self, work):
        """What the table calls its depth."""
        return f"{work.dit.num_layers}, {work.dit.block_patterns.count('full')} full" if self.part in (
            "forward", "step", "policy") else ""


def _degrees(skiparse, ulysses, shard=1):
    return tuple(f"parallel_config.{name}={value}" for name, value in (
        ("skiparse_parallel", skiparse), ("ulysses_parallel", ulysses), ("parameter_shard", shard)))


_TRAIN_LORA, _POST_TRAIN_HIF8 = "yaml_configs/train/14b_lora.yaml", "yaml_configs/post_train/14b_hif8.yaml"

_NO_RECOMPUTE = ("recompute_config.recompute=false",)

_GENERATE_HIF8, _TRAIN_HIF8 = (f"yaml_configs/{mode}/14b_hif8.yaml" for mode in ("generate", "train"))

_GENERATE_OFFLOAD = "yaml_configs/generate/14b_offload.yaml"

_WHOLE_FRAMES = ("model.vae.tile_size=null", "model.vae.tile_overlap=null")

# Eight blocks have both patterns and full attention; four of them, none full, are for what does not depend on it.
REAL_PATHS = {
    "forward 14B": Real(GENERATE, "forward", None, None),
    "forward 14B, blocks from the host": Real(_GENERATE_OFFLOAD, "forward", None, None),
    "forward 14B, SSP 4x2": Real(GENERATE, "forward", 8, 4, 8, _degrees(4, 2)),
    "training step 14B, whole": Real(TRAIN, "step", None, None, 8),
    "training step 14B, SSP 4x2, weights over 8": Real(TRAIN, "step", 8, 4, 8),
    "training step 14B, the same without recompute": Real(TRAIN, "step", 8, 4, 8, _NO_RECOMPUTE),
    "training step 14B, 16 blocks": Real(TRAIN, "step", 16, 4, 8),
    "training step 14B, 16 blocks without recompute": Real(TRAIN, "step", 16, 4, 8, _NO_RECOMPUTE),
    "training step 14B, SSP 4x2, whole weights": Real(TRAIN, "step", 4, 0, 8, _degrees(4, 2)),
    "training step 14B, SSP 4x2, weights over 8, HiF8 native": Real(_TRAIN_HIF8, "step", 8, 4, 8, _NATIVE),
    "training step 14B, HiF8 native, whole": Real(_TRAIN_HIF8, "step", None, None, 8, _NATIVE),
    "post-training 14B, scoring and update, SSP 4x2, weights over 8": Real(POST_TRAIN, "policy", 4, 0, 8),
    "post-training 14B, the same in 8 bits, native": Real(_POST_TRAIN_HIF8, "policy", 4, 0, 8, _NATIVE),
    "adapters, training step 14B, SSP 4x2, weights over 8": Real(_TRAIN_LORA, "step", 8, 4, 8),
    "VAE, decoding 720P": Real(GENERATE, "vae", None, None, 1, _WHOLE_FRAMES),
    "VAE, decoding 720P by tiles of 720 pixels": Real(GENERATE, "vae", None, None),
    "VAE, decoding 720P by tiles of 480 pixels": Real(_GENERATE_OFFLOAD, "vae", None, None),
    "UMT5-XXL, 512 tokens": Real(GENERATE, "umt5", None, None),
    "forward 14B, SSP 4x1": Real(GENERATE, "forward", 8, 4, 4, _degrees(4, 1)),
    "forward 14B, SSP 2x2": Real(GENERATE, "forward", 8, 4, 4, _degrees(2, 2)),
    "forward 14B, SSP 4x2, weights over 8": Real(GENERATE, "forward", 8, 4, 8, _degrees(4, 2, 8)),
    "forward 14B, HiF8 native": Real(_GENERATE_HIF8, "forward", 4, 0, 1, _NATIVE),
    "forward 14B, HiF8 emulated": Real(_GENERATE_HIF8, "forward", 4, 0, 1, _EMULATED),
    "forward 1.3B, 480P": Real("yaml_configs/generate/1_3b.yaml", "forward", 8, 4),
    "training step 14B, SSP 4x1, weights over 4": Real(TRAIN, "step", 8, 4, 4, _degrees(4, 1, 4)),
    "training step 14B, SSP 2x2, weights over 4": Real(TRAIN, "step", 8, 4, 4, _degrees(2, 2, 4)),
    "training step 14B, SSP 4x2, weights over 8, HiF8 emulated": Real(_TRAIN_HIF8, "step", 4, 0, 8, _EMULATED),
    "training step 1.3B, 480P, SSP 4x1, weights over 8": Real("yaml_configs/train/1_3b.yaml", "step", 8, 4, 8),
}
# Encoding belongs to prepare-data, whose files have no transformer to plan for. Two micro-batches: gradients add up.
OTHER_PATHS = {
    "VAE, encoding 720P": Job("vae", {"dim": 96, "height": 90, "width": 160, "frames": 21, "parts": ["encode"]}),
    "accumulation, norm, clipping, update, average (small)": Job("step", {"batches": 2}),
}
TABLE = (*REAL_PATHS, *OTHER_PATHS)
HEADER = ("| path | blocks | compiles | aclnn | aclop | HCCL | peak, MB | `plan`, MB | seconds |\n"
          "|---|---|---|---|---|---|---|---|---|")


def planned(real, work):
    """Bytes that `plan` counts for what a Real compiles."""
    estimate = memory.estimate(work)
    if real.part not in _PHASES:
        return estimate.total
    phase, others = _PHASES[real.part]
    return sum(value for name, value in {**estimate.lasting, **estimate.phases[phase]}.items() if name not in others)


def row(title, report, blocks, plan_bytes):
    """A line of the table, in Markdown; `plan_bytes` or None."""
    plan = "" if plan_bytes is None else f"{plan_bytes / 2**20:,.0f}"
    counts = " | ".join(str(report.nodes(path)) for path in ("aclnn", "aclop", "hccl"))
    return (f"| {title} | {blocks} | {report.error or 'yes'} | {counts} | {report.peak_mb:,} | {plan} "
            f"| {sum(report.seconds.values()):.0f} |")


def print_table(titles, timeout):
    """Compiles the paths of some titles of TABLE and prints a line of each as it is done, then what is left on the
    legacy path and in fp64. True where all compiled.
    """
    print(HEADER, flush=True)
    legacy, float64, works = set(), 0, True
    for title in titles:
        real = REAL_PATHS.get(title)
        job, work = real.job() if real else (OTHER_PATHS[title], None)
        report = run_case(job.case, job.options, title, size=job.size, timeout=timeout)
        blocks, plan_bytes = (real.blocks(work), planned(real, work)) if real else ("", None)
        print(row(title, report, blocks, plan_bytes), flush=True)
        legacy |= set(report.operators.get("aclop", {}))
        float64, works = float64 + report.float64, works and report.error is None
    print(f"\naclop: {', '.join(sorted(legacy)) or 'none'}; nodes in fp64: {float64}")
    return works
