"""Jobs of real workers, each run once for all tests that read its results."""

import json
import shutil
from pathlib import Path

import pytest

from tests.distributed.cases import MODEL, MORE, PARTS, STEPS, TRAINING, adapter_settings, train_settings
from tests.support import generate_runs, train_runs
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
def training_folder(tmp_path_factory):
    """Folder with `data` and NAME.yaml of every run of cases.TRAINING, whose own folder is NAME beside it."""
    folder = tmp_path_factory.mktemp("training")
    data = train_runs.write_cache(folder / "data")
    # Two videos, each on two processes, weights spread over all; then a video on each of two.
    four, two = dict(skiparse_parallel=2, data_parallel=2, parameter_shard=4), dict(data_parallel=2, parameter_shard=2)
    settings = {"save": (STEPS, "pynative", four), "resume": (MORE, "pynative", two), "nan": (3, "pynative", two),
                "disagree": (3, "pynative", two), "resume compiled": (MORE, "graph", two)}
    for name, (steps, mode, parallel) in settings.items():
        write_config(folder / f"{name}.yaml", train_settings(folder / name, data, steps, mode, **parallel))
    base = train_runs.write_base(folder / "base.safetensors")
    for name, parallel in {"adapters ssp": dict(skiparse_parallel=2), "adapters data": two}.items():
        write_config(folder / f"{name}.yaml", adapter_settings(folder / name, data, base, **parallel))
    return folder


@pytest.fixture(scope="session")
def job(request, tmp_path_factory):
    """Function (world size, "quick" or "slow") -> list of every rank's results of the parts that tests are run of."""
    done = {}
    chosen = {item.path for item in request.session.items}
    parts = [part for part in PARTS if Path(__file__).with_name(f"test_{part}.py") in chosen]

    def prepare(folder, world, speed):
        if "sequence_parallel" in parts:
            shutil.copytree(request.getfixturevalue("expected_folder"), folder, dirs_exist_ok=True)
        for name in TRAINING[world, speed] if "train" in parts else ():
            training = request.getfixturevalue("training_folder")
            if name.startswith("resume"):
                results(4)
                shutil.copytree(training / "save", training / name)
            shutil.copy(training / f"{name}.yaml", folder)

    def run(world, speed):
        folder = tmp_path_factory.mktemp(f"world{world}{speed}")
        prepare(folder, world, speed)
        status, output = run_workers(world, folder, "-m", "tests.distributed.worker", str(folder), speed, *parts)
        if status:
            return f"{world} workers ended with status {status}:\n{output[-8000:]}"
        found = [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(world)]
        print(f"{world} workers, seconds: {found[0]['seconds']}")
        return found

    def results(world, speed="quick"):
        if (world, speed) not in done:
            done[world, speed] = run(world, speed)
        if isinstance(done[world, speed], str):
            pytest.fail(done[world, speed])
        return done[world, speed]

    return results
