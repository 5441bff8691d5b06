"""Opens the checkpoints of a run, and refuses to go on from one with settings under which it would mean something else.

What a configuration does not say by itself (the contents of the files it names, the samples of a step over all
processes) is its identity, a dict beside it. It is kept in the checkpoint as the configuration is.
"""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
from mindspore import Tensor

from ospnext_ms.config.reader import read_section
from ospnext_ms.kernels.collectives import AllGather
from ospnext_ms.parallel.agreement import check_agreement
from ospnext_ms.storage.checkpoint_store import CheckpointStore
from ospnext_ms.storage.run_lock import RunLock

CHECKPOINTS = "checkpoints"


def open_run(config, identity, may_change, mesh, writer=0, num_writers=1):
    """(CheckpointStore, newest intact Checkpoint or None) of a run; all processes call it.

    Args:
        config: TrainConfig or PostTrainConfig. identity: {name: JSON value}. may_change: see check_same_run.
        writer, num_writers: of CheckpointStore.

    Raises:
        ValueError: processes were given different settings or data; another run is writing to the folder; there are
            checkpoints, but not to be resumed, or none is intact; see check_same_run.
    """
    check_agreement(mesh.world_group, dataclasses.asdict(config) | identity)
    gather = AllGather(mesh.world_group)

    def all_agree(verdict):
        """True where every process says so; also a meeting point."""
        return bool(gather(Tensor(np.array([verdict], np.float32)), "agreement").asnumpy().all())

    store = CheckpointStore(Path(config.output_dir) / CHECKPOINTS, config.callbacks.keep_checkpoint_max, writer,
                            num_writers)
    if store.paths() and not config.resume_training:
        raise ValueError(f"{store.folder} has checkpoints, but resume_training is false; give another output_dir, "
                         "or remove them")
    if mesh.reports:
        # Held as long as the store is there.
        store.lock = RunLock(config.output_dir)
        for name in store.remove_leftovers():
            print(f"checkpoint {store.folder / name} was never finished; it is not used and has been removed")
    all_agree(True)
    newest = store.newest(reader=mesh.rank, num_readers=mesh.size, agree=all_agree)
    if newest is not None:
        check_same_run(newest, config, identity, may_change)
    return store, newest


def run_state(config, identity):
    """What check_same_run needs, as part of a checkpoint's state."""
    return {"configuration": dataclasses.asdict(config), "identity": identity}


def check_same_run(checkpoint, config, identity, may_change):
    """Compares a run with the one that saved a checkpoint; defaults stand for keys that were not there yet.

    Args:
        may_change: keys ("a.b", whole sections or single ones; those of list members without index) that need not be
            equal.

    Raises:
        ValueError: naming every other key that differs.
    """
    saved = dataclasses.asdict(read_section(type(config), checkpoint.state["configuration"]))
    # A checkpoint of a version that kept no identity is taken at its configuration's word.
    saved_identity = checkpoint.state.get("identity", identity)
    lines = [f"{key}: {_show(then)} then, {_show(now)} now" for key, then, now in
             _differences(saved | saved_identity, dataclasses.asdict(config) | identity, may_change)]
    if lines:
        raise ValueError(f"{checkpoint.path} was saved by a run with other settings:\n" + "\n".join(lines)
                         + "\nSet them back to resume it. To start anew give another output_dir; with load_checkpoint "
                         f"(post-train: lora.checkpoint) and resume_training: false it starts from weights, such as "
                         f"{checkpoint.path}/parameters or the adapters of a finished run")


def _differences(then, now, may_change, path=""):
    if re.sub(r"\[\d+\]", "", path) in may_change:
        return
    if isinstance(then, dict) and isinstance(now, dict):
        members = [(f"{path}.{key}" if path else key, then.get(key, _ABSENT), now.get(key, _ABSENT))
                   for key in then | now]
    elif isinstance(then, tuple) and isinstance(now, tuple) and len(then) == len(now):
        members = [(f"{path}[{i}]", *pair) for i, pair in enumerate(zip(then, now, strict=True))]
    else:
        if then != now:
            yield path, then, now
        return
    for name, *values in members:
        yield from _differences(*values, may_change, name)


def _show(value):
    return value if value is _ABSENT else json.dumps(value, ensure_ascii=False)


_ABSENT = "not given"
