"""Jobs of real workers, each run once for all tests that read its results."""

import json
import shutil

import pytest

from tests.distributed.cases import MODEL
from tests.support import generate_runs
from tests.support.configs import changed, write_config
from tests.support.msrun import run_workers
from tests.support.text_to_video import model_section, text_encoder_of, write_weights


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """Folder with a random text-to-video model and generate.yaml, which runs it."""
    folder = tmp_path_factory.mktemp("model")
    text_encoder = text_encoder_of(MODEL, ffn_dim=16)
    write_weights(folder, MODEL, text_encoder)
    model = model_section(folder, MODEL, text_encoder)
    model["vae"] |= {"tile_size": 32, "tile_overlap": 8}
    values = changed(generate_runs.settings(folder, folder / "output"), model=model, sampling={"steps": 3},
                     video={"height": 48, "width": 80})
    write_config(folder / "generate.yaml", values)
    return folder


@pytest.fixture(scope="session")
def expected_folder(tmp_path_factory, model_folder):
    """Folder with what one process computes."""
    # Here, so that collecting the tests loads no framework.
    from tests.distributed.worker import write_expected

    folder = tmp_path_factory.mktemp("expected")
    (folder / "generate.yaml").write_text((model_folder / "generate.yaml").read_text())
    write_expected(folder)
    return folder


@pytest.fixture(scope="session")
def job(tmp_path_factory, expected_folder):
    """Function (world size, "quick" or "slow") -> list of every rank's results."""
    done = {}

    def run(world, speed):
        folder = tmp_path_factory.mktemp(f"world{world}{speed}") / "results"
        shutil.copytree(expected_folder, folder)
        status, output = run_workers(world, folder, "-m", "tests.distributed.worker", str(folder), speed)
        if status:
            return f"{world} workers ended with status {status}:\n{output[-8000:]}"
        results = [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(world)]
        print(f"{world} workers, seconds: {results[0]['seconds']}")
        return results

    def results(world, speed="quick"):
        if (world, speed) not in done:
            done[world, speed] = run(world, speed)
        if isinstance(done[world, speed], str):
            pytest.fail(done[world, speed])
        return done[world, speed]

    return results
