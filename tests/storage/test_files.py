"""Atomic files and folders: complete under their name, or what was there before."""

import errno

import pytest

from ospnext_ms.storage.files import atomic_folder, atomic_path


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def write_half(path, error):
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error


def fill_half(folder, error):
    with atomic_folder(folder, overwrite=True) as temporary:
        (temporary / "new").write_text("new")
        raise error


def test_file_appears_only_when_complete(tmp_path):
    target = tmp_path / "new" / "weights.safetensors"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.suffix == target.suffix
        temporary.write_text("complete")
        assert not target.exists()
    assert target.read_text() == "complete"
    assert names(target.parent) == ["weights.safetensors"]


@pytest.mark.parametrize("error", [OSError("no space left on device"), KeyboardInterrupt()])
def test_failed_write_keeps_the_old_file(tmp_path, error):
    target = tmp_path / "result.json"
    target.write_text("old")
    with pytest.raises(type(error)):
        write_half(target, error)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["result.json"]


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="result.json"), atomic_path(tmp_path / "result.json"):
        pass
    assert names(tmp_path) == []


def test_file_over_folder_is_refused(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError, match="taken"), atomic_path(tmp_path / "taken"):
        pytest.fail("the block must not run")


def test_file_has_the_permissions_of_a_plain_one(tmp_path):
    (tmp_path / "plain").write_text("x")
    with atomic_path(tmp_path / "atomic") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("write", [write_half, fill_half])
def test_a_full_disk_is_told_with_the_path(tmp_path, write):
    """The system does not say which file it is that does not fit."""
    with pytest.raises(OSError, match=r"No space left on device: '.*big'") as caught:
        write(tmp_path / "big", OSError(errno.ENOSPC, "No space left on device"))
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == []


def test_the_name_that_is_told_is_not_the_temporary_one(tmp_path):
    with pytest.raises(OSError, match="No space left on device: '.*/big.mp4'$"), \
            atomic_path(tmp_path / "big.mp4") as temporary:
        raise OSError(errno.ENOSPC, "No space left on device", str(temporary))
    with pytest.raises(OSError, match="'another'"), atomic_path(tmp_path / "big.mp4"):
        raise OSError(errno.ENOSPC, "No space left on device", "another")


def test_folder_appears_only_when_complete(tmp_path):
    target = tmp_path / "step_10"
    with atomic_folder(target) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a").write_text("a")
        assert not target.exists()
    assert names(tmp_path) == ["step_10"]
    assert (target / "inner" / "a").read_text() == "a"


def test_folder_exists(tmp_path):
    (tmp_path / "step_10").mkdir()
    with pytest.raises(FileExistsError, match="step_10"), atomic_folder(tmp_path / "step_10"):
        pytest.fail("the block must not run")


def test_folder_overwrite_replaces_everything(tmp_path):
    target = tmp_path / "step_10"
    target.mkdir()
    (target / "old").write_text("old")
    with atomic_folder(target, overwrite=True) as temporary:
        (temporary / "new").write_text("new")
        assert names(target) == ["old"]
    assert names(target) == ["new"]
    assert names(tmp_path) == ["step_10"]


def test_failed_folder_keeps_the_old_one(tmp_path):
    target = tmp_path / "step_10"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(OSError, match="no space"):
        fill_half(target, OSError("no space"))
    assert names(tmp_path) == ["step_10"]
    assert names(target) == ["old"]
