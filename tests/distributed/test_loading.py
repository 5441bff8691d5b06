"""What a process holds while it loads weights that are spread over two."""

import json
import sys

import numpy as np
import pytest

from ospnext_ms.models.config import DiTConfig
from ospnext_ms.planning.shapes import count, dit_parameters
from ospnext_ms.storage.safetensors_io import ArrayTensor, write_file
from tests.support.msrun import run_workers


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_a_process_holds_its_part_and_one_tensor(tmp_path):
    from tests.distributed.loading import PROCESSES, SIZES

    shapes = dit_parameters(DiTConfig(**SIZES))
    ones = np.ones(max(map(np.prod, shapes.values())), np.float32)
    write_file(tmp_path / "dit.safetensors",
               {name: ArrayTensor(ones[: np.prod(shape)].reshape(shape)) for name, shape in shapes.items()})
    stored = 4 * count(shapes)
    assert stored > 2e8
    status, output = run_workers(PROCESSES, tmp_path, "-m", "tests.distributed.loading", tmp_path)
    assert status == 0, output[-3000:]
    for rank in range(PROCESSES):
        found = json.loads((tmp_path / f"rank_{rank}.json").read_text())
        print(f"rank {rank}: of {stored / 1e6:.0f} MB on disk, sharded {found['sharded'] / 1e6:.0f}, whole "
              f"{found['whole'] / 1e6:.0f} MB at the peak")
        # Half of it, the largest tensor twice, and room for what Python and MindSpore keep beside.
        assert found["sharded"] < stored / 2 + 2 * ones.nbytes + 2.5e7 < 0.75 * stored
        assert found["whole"] > 0.95 * stored
