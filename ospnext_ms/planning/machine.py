"""`python -m ospnext_ms doctor`: what this machine can run, and what a missing piece means."""

import importlib.util
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NoReturn

from ospnext_ms.planning.ascend_checks import check_cann, check_versions, collective_checks

PACKAGES = ("mindspore", "mindformers", "numpy", "transformers", "av", "opencv-python-headless")
CANN_VARIABLES = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME", "ASCEND_OPP_PATH")
CANN_FOLDERS = ("/usr/local/Ascend/ascend-toolkit/latest", "/usr/local/Ascend/latest")
MIN_FREE_BYTES = 1 << 30
NO_CANN = "not found (needed on Ascend only)"


@dataclass(frozen=True)
class Check:
    """`run` returns a line on what was found, or raises; `consequence` is what the user cannot do then.

    Only a failing `required` check makes generation impossible.
    """

    name: str
    run: Callable[[], str]
    consequence: str
    required: bool = False


def examine() -> bool:
    """Runs all checks, prints a line for each, and tells whether generation can work."""
    print(f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores")
    print(f"Packages: {', '.join(f'{name} {_version(name)}' for name in PACKAGES)}")
    print(f"CANN: {find_cann()}")
    # Processes have to find one another before any operator runs.
    collectives = _collective_checks()
    failed = [check for check in (*CHECKS, *_ascend_checks(), *_contract_checks(), *collectives) if not report(check)]
    broken = [check.name for check in failed if check.required]
    print(f"generate cannot work here: {', '.join(broken)}" if broken else "generate can work here.")
    return not broken


def report(check: Check) -> bool:
    """Runs a check, prints its line, and tells whether it passed. Whatever it raises is a result, not a crash."""
    try:
        print(f"  ok      {check.name}: {check.run()}")
        return True
    except Exception as error:
        first_line = (str(error).strip() or type(error).__name__).split("\n")[0]
        print(f"  {'FAILED ' if check.required else 'missing'} {check.name}: {first_line}\n"
              f"          -> {check.consequence}")
        return False


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def find_cann() -> str:
    """Version and folder of CANN, or that it is not there."""
    folders = [os.environ[name] for name in CANN_VARIABLES if os.environ.get(name)] + list(CANN_FOLDERS)
    for folder in map(Path, folders):
        if folder.is_dir():
            return f"{_cann_version(folder)} in {folder}"
    return NO_CANN


def _cann_version(folder: Path) -> str:
    for file in ("version.cfg", "compiler/version.info", "runtime/version.info"):
        path = folder / file
        found = re.search(r"(?im)^\w*version=\[?([\w.]+)", path.read_text()) if path.is_file() else None
        if found:
            return found[1]
    return "unknown version"


def check_mindspore() -> str:
    """MindSpore loads and computes."""
    import mindspore as ms
    import numpy as np

    total = float((ms.Tensor(np.ones((4, 4), np.float32)) * 2).sum())
    if total != 32:
        raise ValueError(f"a sum of 32 came out as {total}")
    return ms.__version__


def check_ascend() -> str:
    """An Ascend device is selected and computes; MindSpore otherwise goes on on the CPU without a word."""
    import mindspore as ms

    device = ms.get_context("device_target")
    if device != "Ascend":
        raise ValueError(f"MindSpore runs on {device}")
    count = ms.hal.device_count("Ascend")
    x = ms.ops.ones((16, 16), ms.bfloat16)
    total = float(ms.ops.matmul(x, x).astype(ms.float32).sum())
    if total != 4096:
        raise ValueError(f"a bf16 matrix product with the sum 4096 came out as {total}")
    return f"{count} devices"


def check_jit() -> str:
    """A Cell compiles into a graph and gives the numbers of PyNative."""
    import mindspore as ms
    import numpy as np

    net = ms.nn.Dense(4, 3)
    x = ms.Tensor(np.arange(8, dtype=np.float32).reshape(2, 4))
    error = float(ms.ops.abs(ms.jit(net)(x) - net(x)).max())
    if not error < 1e-2:
        raise ValueError(f"compiled and PyNative results differ by {error}")
    return f"compiled and PyNative results differ by {error:.0e}"


def check_hif8() -> str:
    """The device multiplies HiFloat8 matrices itself, and as the emulation does."""
    from ospnext_ms.kernels.hif8_backend import probe_native

    works, found = probe_native()
    if not works:
        raise ValueError(found)
    return found


def check_video() -> str:
    """H.264 is written and read back."""
    import numpy as np

    from ospnext_ms.data.video import read_video, write_mp4

    frames = np.full((3, 32, 48, 3), (200, 100, 50), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        write_mp4(Path(folder) / "test.mp4", frames, fps=8, crf=18)
        back = read_video(Path(folder) / "test.mp4")
    if back.shape != frames.shape or np.abs(back.astype(int) - frames).max() > 8:
        raise ValueError(f"wrote {frames.shape}, read {back.shape} with other colours")
    return "written and read back"


def check_png() -> str:
    """A PNG is written."""
    import numpy as np

    from ospnext_ms.data.pictures import write_png

    with tempfile.TemporaryDirectory() as folder:
        write_png(Path(folder) / "test.png", np.zeros((8, 8, 3), np.uint8))
    return "written"


def check_tokenizer() -> str:
    """The packages that read a tokenizer folder load."""
    import ftfy
    from transformers import AutoTokenizer

    assert AutoTokenizer
    return f"transformers {_version('transformers')}, ftfy {ftfy.__version__}"


def check_torch() -> str:
    """PyTorch is there."""
    if importlib.util.find_spec("torch") is None:
        raise ModuleNotFoundError("the package torch is not installed")
    return _version("torch")


def check_memory() -> str:
    """Free memory of the host."""
    import psutil

    return _enough(psutil.virtual_memory().available)


def check_disk() -> str:
    """Free space in the current folder."""
    return _enough(shutil.disk_usage(".").free)


def _enough(free: int) -> str:
    if free < MIN_FREE_BYTES:
        raise ValueError(f"{free / 1e9:.1f} GB free")
    return f"{free / 1e9:.0f} GB free"


CHECKS = (
    Check("MindSpore", check_mindspore, "nothing runs; install the packages of requirements.txt", required=True),
    Check("graph compilation", check_jit, "set context.mode=pynative, which is several times slower"),
    Check("Ascend", check_ascend, "networks run on the CPU in fp32: enough for the tiny model, not for 1.3B and 14B"),
    Check("native HiFloat8", check_hif8, "dit.quant: hif8 is emulated: right results, but slower than without it"),
    Check("H.264 video", check_video, "videos cannot be written; install the package av", required=True),
    Check("PNG", check_png, "contact sheets cannot be written; install opencv-python-headless", required=True),
    Check("tokenizer", check_tokenizer, "prompts cannot be read; install transformers and ftfy", required=True),
    Check("PyTorch", check_torch, "tools/convert_checkpoint.py cannot read .pth files; safetensors work without it"),
    Check("host memory", check_memory, "even the tiny model may not fit; close other programs"),
    Check("disk", check_disk, "results may not fit; free some space or use --output on another disk"),
)


def _fail(error: Exception) -> NoReturn:
    raise error


def _ascend_checks() -> list[Check]:
    """Of versions and of CANN, the latter only where it is there."""
    checks = [Check("supported versions", check_versions, "other versions may work, and are not tested")]
    if (cann := find_cann()) != NO_CANN:
        checks.append(Check("CANN for several processes", partial(check_cann, cann),
                            "several processes cannot communicate, or operators are missing"))
    return checks


def _collective_checks() -> list[Check]:
    """The collectives' contracts, under msrun."""
    try:
        checks = collective_checks()
    except Exception as error:
        return [Check("processes", partial(_fail, error), "the processes of msrun do not find one another",
                      required=True)]
    return [Check(f"collective {name}", check, "results on several devices would be wrong; please report it",
                  required=True) for name, check in checks]


def _contract_checks() -> list[Check]:
    """The kernels' contracts, measured on the device at hand; none where MindSpore is not there."""
    if importlib.util.find_spec("mindspore") is None:
        return []
    try:
        from ospnext_ms.kernels.contracts import CONTRACTS
    except Exception as error:
        return [Check("kernels", partial(_fail, error), "nothing runs; see the checks above", required=True)]
    return [Check(f"kernel {name}", contract, "results on this device would be wrong; please report it", required=True)
            for name, contract in CONTRACTS]
