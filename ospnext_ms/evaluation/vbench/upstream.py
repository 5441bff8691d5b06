"""Run by another interpreter, in the environment that has upstream's package `vbench`; it knows nothing of this one.

    PYTHON upstream.py probe                                        prints JSON: what that environment has
    PYTHON upstream.py find SUITE VIDEOS OUTPUT NAME DIMENSION ...  its look-up alone: OUTPUT/NAME_full_info.json
    PYTHON upstream.py score SUITE VIDEOS OUTPUT DIMENSION DEVICE   OUTPUT/DIMENSION_{eval_results,full_info}.json
"""

import importlib.metadata
import importlib.util
import json
import pathlib
import sys


def probe():
    """Prints a JSON object: the package's version, where its suite lies, devices, and whether detectron2 is there."""
    import torch

    spec = importlib.util.find_spec("vbench")
    if spec is None:
        print(json.dumps({"version": None}))
        return
    print(json.dumps({
        "version": importlib.metadata.version("vbench"),
        "suite": str(pathlib.Path(spec.submodule_search_locations[0]) / "VBench_full_info.json"),
        "torch": torch.__version__,
        "cuda": torch.cuda.is_available(),
        "detectron2": importlib.util.find_spec("detectron2") is not None,
    }))


def find(suite, videos, output, name, *dimensions):
    """Has upstream look the videos of some dimensions up by name."""
    from vbench import VBench

    VBench("cpu", suite, output).build_full_info_json(videos, name, list(dimensions))


def score(suite, videos, output, dimension, device):
    """Has upstream score one dimension, as its own command does."""
    import torch
    from vbench import VBench

    VBench(torch.device(device), suite, output).evaluate(
        videos, dimension, dimension_list=[dimension], imaging_quality_preprocessing_mode="longer")


if __name__ == "__main__":
    {"probe": probe, "find": find, "score": score}[sys.argv[1]](*sys.argv[2:])
