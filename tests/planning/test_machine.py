"""`doctor`: what it finds, and what it makes of what is not there."""

import re

import pytest

from ospnext_ms.__main__ import main
from ospnext_ms.data import video
from ospnext_ms.kernels import contracts
from ospnext_ms.planning import machine as doctor


def test_this_machine_can_generate(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"mindspore \d+\.\d+", shown)
    assert "generate can work here." in shown
    for name in ("MindSpore", "graph compilation", "H.264 video", "PNG", "tokenizer", "host memory", "disk"):
        assert re.search(rf"^  ok      {name}: \S", shown, re.MULTILINE), name
    for name, _ in contracts.CONTRACTS:
        assert re.search(rf"^  ok      kernel {name}: .*relative error", shown, re.MULTILINE), name


def test_a_missing_piece_that_is_needed(capsys, monkeypatch):
    def no_encoder(*arguments, **options):
        raise ValueError("no encoder libx264\nand a long explanation")

    monkeypatch.setattr(video, "write_mp4", no_encoder)
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "  FAILED  H.264 video: no encoder libx264\n          -> videos cannot be written" in shown
    assert shown.endswith("generate cannot work here: H.264 video\n")


def test_a_missing_piece_that_is_not_needed(capsys):
    def fail():
        raise ModuleNotFoundError("No module named 'torch'")

    assert not doctor.report(doctor.Check("PyTorch", fail, "no .pth files"))
    assert capsys.readouterr().out == "  missing PyTorch: No module named 'torch'\n          -> no .pth files\n"


def test_a_kernel_that_breaks_its_contract(capsys, monkeypatch):
    def wrong():
        raise AssertionError("relative error 3e-01, allowed 1e-05")

    monkeypatch.setattr(contracts, "CONTRACTS", [("attention", wrong)])
    monkeypatch.setattr(doctor, "CHECKS", ())
    assert main(["doctor"]) == 1
    assert "  FAILED  kernel attention: relative error 3e-01" in capsys.readouterr().out


def test_an_error_without_a_message_has_a_name(capsys):
    def fail():
        raise AssertionError

    doctor.report(doctor.Check("kernel x", fail, "broken", required=True))
    assert "FAILED  kernel x: AssertionError\n" in capsys.readouterr().out


@pytest.mark.parametrize(("file", "content", "expected"), [
    ("version.cfg", "# version: 1.0\nruntime_running_version=[9.0.0.1.242:CANN-9.0]\n", "9.0.0.1.242"),
    ("compiler/version.info", "Version=9.0.0.RC1\nversion_dir=9.0.0\n", "9.0.0.RC1"),
    ("other.txt", "", "unknown version"),
])
def test_cann_is_found(tmp_path, monkeypatch, file, content, expected):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(content)
    for name in doctor.CANN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor, "CANN_FOLDERS", ())
    assert doctor.find_cann() == "not found (needed on Ascend only)"
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(tmp_path))
    assert doctor.find_cann() == f"{expected} in {tmp_path}"


def test_too_little_space(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: doctor.shutil._ntuple_diskusage(9, 9, 10**8))
    with pytest.raises(ValueError, match=r"0\.1 GB free"):
        doctor.check_disk()
