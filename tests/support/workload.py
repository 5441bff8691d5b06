"""Workloads to plan: the sizes of the paper, and what a test does not care about filled in."""

from ospnext_ms.config.sections import ParallelSection
from ospnext_ms.models.config import DiTConfig
from ospnext_ms.planning.workload import Workload

OSP_NEXT_14B = DiTConfig(5120, 13824, 40, 40, 256, 4096, 512, num_full_blocks=8)


def workload(dit, video, skiparse, ulysses, **changes):
    values = dict(
        run_mode="train", dit=dit, text_encoder=None, video=video, notes=(), batch=1, batches=1, forwards=1, compute=4,
        residual=4, stored=4, flash=False, trained="all", lora=None, ema=True, recompute=False, peak_tflops=None,
        parallel=ParallelSection(data_parallel=1, skiparse_parallel=skiparse, ulysses_parallel=ulysses))
    return Workload(**(values | changes))
