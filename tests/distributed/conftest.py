"""Jobs of real workers, each run once for all tests that read its results."""

import json

import pytest
import yaml

from tests.distributed.cases import MODEL
from tests.distributed.launch import run_workers
from tests.distributed.model_files import write_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """Folder with a random text-to-video model and generate.yaml, which runs it."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "generate.yaml").write_text(yaml.safe_dump(write_model(folder, MODEL)))
    return folder


@pytest.fixture(scope="session")
def job(tmp_path_factory, model_folder):
    """Function (world size, "quick" or "slow") -> list of every rank's results."""
    done = {}

    def results(world, wanted="quick"):
        if (world, wanted) not in done:
            folder = tmp_path_factory.mktemp(f"world{world}{wanted}")
            (folder / "generate.yaml").write_text((model_folder / "generate.yaml").read_text())
            status, output = run_workers(world, folder, "-m", "tests.distributed.worker", str(folder), wanted)
            if status:
                done[world, wanted] = f"{world} workers ended with status {status}:\n{output[-8000:]}"
            else:
                ranks = range(world)
                done[world, wanted] = [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in ranks]
                print(f"{world} workers, seconds: {done[world, wanted][0]['seconds']}")
        if isinstance(done[world, wanted], str):
            pytest.fail(done[world, wanted])
        return done[world, wanted]

    return results
