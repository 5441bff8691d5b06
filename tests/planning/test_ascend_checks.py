"""What `doctor` says of CANN and of versions."""

import pytest

from ospnext_ms.planning import ascend_checks


def test_versions_that_belong_together(monkeypatch):
    monkeypatch.setattr(ascend_checks, "version", {"mindspore": "2.9.0", "mindformers": "1.9.0"}.get)
    assert ascend_checks.check_versions() == "mindspore 2.9.0 with mindformers 1.9.0"
    monkeypatch.setattr(ascend_checks, "version", {"mindspore": "2.10.0", "mindformers": "1.9.0"}.get)
    with pytest.raises(ValueError, match=r"^mindspore is 2.10.0; supported: mindspore 2.9 with mindformers 1.9$"):
        ascend_checks.check_versions()


def test_the_python_packages_of_cann(monkeypatch):
    with pytest.raises(ValueError, match="packages te and hccl are not on the path; source set_env.sh"):
        ascend_checks.check_cann("9.0.0 in /cann")
    monkeypatch.setattr(ascend_checks.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match="CANN is 8.5.0 in /cann; MindSpore 2.9 belongs to 9.0.0"):
        ascend_checks.check_cann("8.5.0 in /cann")
    assert ascend_checks.check_cann("9.0.0 in /cann") == (
        "CANN 9.0.0 in /cann, driver unknown (MindSpore was released with 26.0.RC1)")


def test_the_driver(tmp_path):
    (tmp_path / "version.info").write_text("package_version=26.0\nVersion=26.0.rc1\ninnerversion=V100\n")
    assert ascend_checks.driver_version(tmp_path / "version.info") == "26.0.rc1"
    assert ascend_checks.driver_version(tmp_path / "nothing") == "unknown"


def test_one_process_has_no_collectives():
    assert ascend_checks.collective_checks() == []
