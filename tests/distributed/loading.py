"""One of two processes that build a transformer, sharded and whole: python -m tests.distributed.loading FOLDER

FOLDER/dit.safetensors are its weights. How much each of the two takes at its peak is written to FOLDER/rank_N.json.
"""

import gc
import json
import sys
from pathlib import Path

import mindspore as ms

from ospnext_ms.build import build_dit
from ospnext_ms.config.sections import DiTSection, ParallelSection
from ospnext_ms.parallel.mesh import Mesh, start_processes
from ospnext_ms.runtime import Runtime
from tests.support.resident import resident

# 50 million values, 200 MB in fp32; the largest tensor has 4 MB.
SIZES = {"dim": 512, "ffn_dim": 2048, "num_heads": 4, "num_layers": 12, "freq_dim": 64, "text_dim": 64, "text_len": 8,
         "skiparse": "full"}
PROCESSES = 2


def build(section, mesh):
    """(network, bytes by which building it raises the peak over what is resident before)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    net = build_dit(section, Runtime("CPU", ms.float32, False), mesh)
    return net, resident("VmHWM") - before


def main(folder):
    """See above."""
    ms.set_device("CPU")
    mesh = start_processes(ParallelSection(data_parallel=PROCESSES, parameter_shard=PROCESSES))
    section = DiTSection(checkpoint=str(folder / "dit.safetensors"), **SIZES)
    # The first is kept while the second is built, which would find its memory otherwise.
    _first, sharded = build(section, mesh)
    _second, whole = build(section, Mesh.single())
    found = {"sharded": sharded, "whole": whole}
    (folder / f"rank_{mesh.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
