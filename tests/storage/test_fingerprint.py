"""Fingerprints of checkpoints: equal where names, shapes and files are, whatever form the weights are stored in."""

import numpy as np

from ospnext_ms.storage import fingerprint
from ospnext_ms.storage.checkpoint_store import CheckpointStore
from ospnext_ms.storage.training_checkpoint import Piece


def save_in_two_files(folder, weight):
    """As two processes save a weight that each of them holds half of."""
    half = weight.size // 2
    for writer, start in ((1, half), (0, 0)):
        store = CheckpointStore(folder, writer=writer, num_writers=2)
        store.save(1, {"ema": {"weight": Piece(weight.reshape(-1)[start : start + half], weight.shape, start)}}, {})
        store.wait()
    return folder / "step_00000001" / "ema"


def test_a_group_that_several_processes_have_written(tmp_path):
    weight = np.arange(24, dtype=np.float32).reshape(6, 4)
    group = save_in_two_files(tmp_path / "a", weight)
    assert len(list(group.glob("*.safetensors"))) == 2
    assert fingerprint.of_checkpoint(group) == fingerprint.of_checkpoint(save_in_two_files(tmp_path / "b", weight))
    assert fingerprint.of_checkpoint(group) != fingerprint.of_checkpoint(save_in_two_files(tmp_path / "c", weight + 1))
