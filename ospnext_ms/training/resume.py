"""Opens the checkpoints of a run, refuses to go on from one with settings under which it would mean something else, and
leaves a run that a signal ends so that it can be gone on with.

What a configuration does not say by itself (the contents of the files it names, the samples of a step over all
processes) is its identity, a dict beside it. It is kept in the checkpoint as the configuration is.
"""

import dataclasses
import signal
from pathlib import Path

import numpy as np
from mindspore import Tensor

from ospnext_ms.config.reader import read_section
from ospnext_ms.config.resuming import differences
from ospnext_ms.kernels.collectives import AllGather
from ospnext_ms.parallel.agreement import check_agreement
from ospnext_ms.parallel.interruption import exit_status
from ospnext_ms.storage.checkpoint_store import CheckpointStore
from ospnext_ms.storage.run_lock import RunLock

CHECKPOINTS = "checkpoints"


def open_run(config, runtime, identity, may_change, mesh, writer=0, num_writers=1, beside=None):
    """(CheckpointStore, newest intact Checkpoint or None) of a run; all processes call it.

    Args:
        config: TrainConfig or PostTrainConfig. runtime: Runtime. identity: {name: JSON value}. may_change: see
            check_same_run.
        writer, num_writers: of CheckpointStore.
        beside: {name: JSON value} that have to be equal on all processes, but not to those of the run before.

    Raises:
        ValueError: processes were given different settings or data; another run is writing to the folder; there are
            checkpoints, but not to be resumed, or none is intact; see check_same_run.
    """
    check_agreement(mesh.world_group, dataclasses.asdict(config) | identity | (beside or {}))
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
        check_same_run(newest, config, identity, may_change, runtime.dtype_name)
    return store, newest


def run_state(config, identity):
    """What check_same_run needs, as part of a checkpoint's state."""
    return {"configuration": dataclasses.asdict(config), "identity": identity}


def check_same_run(checkpoint, config, identity, may_change, compute_dtype):
    """Compares a run with the one that saved a checkpoint; defaults stand for keys that were not there yet.

    Args:
        may_change: see config/resuming.py. compute_dtype: "fp32" or "bf16".

    Raises:
        ValueError: naming every other key that differs.
    """
    configuration = _in_todays_words(checkpoint.state["configuration"], compute_dtype)
    saved = dataclasses.asdict(read_section(type(config), configuration))
    # A checkpoint of a version that kept no identity is taken at its configuration's word.
    saved_identity = checkpoint.state.get("identity", identity)
    lines = differences(saved | saved_identity, dataclasses.asdict(config) | identity, may_change)
    if lines:
        weights = "adapter" if (checkpoint.path / "adapter").is_dir() else "parameters"
        raise ValueError(f"{checkpoint.path} was saved by a run with other settings:\n" + "\n".join(lines)
                         + "\nSet them back to resume it. To start anew give another output_dir; with load_checkpoint "
                         f"(of adapters: lora.checkpoint) and resume_training: false it starts from weights, such as "
                         f"{checkpoint.path}/{weights}")


def _in_todays_words(configuration, compute_dtype):
    """A saved configuration as it would be written today.

    Null for the residual stream, once the default, is what it stood for; `callbacks.tensorboard`, which became one of
    the trackers, is of no matter to a resumed run.
    """
    model = configuration["model"]
    dit = model["dit"]
    if dit.get("residual_dtype", compute_dtype) is None:
        dit = dit | {"residual_dtype": compute_dtype}
    callbacks = {key: value for key, value in configuration["callbacks"].items() if key != "tensorboard"}
    return configuration | {"model": model | {"dit": dit}, "callbacks": callbacks}


def leave(number, done, store, highest, monitor, close=lambda: None):
    """Ends every process as a signal asks for, when the checkpoint of every process is complete.

    Args:
        number: of the signal. done: words for what was finished last ("step 3"). store: CheckpointStore.
        highest: agreement.Highest of all processes. monitor: Monitor, None on processes that do not report.
        close: called before the processes wait for each other a last time.

    Raises:
        SystemExit: always.
    """
    store.wait()
    highest(0)
    if monitor:
        monitor.close()
        print(f"{signal.Signals(number).name}: {done} is done and saved in {store.folder}; the same command goes on "
              "from there", flush=True)
    close()
    # No process ends before the others are ready to: msrun would kill them.
    highest(0)
    raise SystemExit(exit_status(number))
