"""The folder through which the processes of a host share memory."""

import os
import shutil

import pytest

from kserve.snapshots import shared


@pytest.fixture
def memory(tmp_path, monkeypatch):
    folder = tmp_path / "memory"
    folder.mkdir()
    monkeypatch.setattr(shared, "MEMORY", folder)
    return folder


def test_it_is_the_same_for_every_name_of_a_data_directory(memory, tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "alias").symlink_to(data)
    folder = shared.shared_folder(data)
    monkeypatch.chdir(tmp_path)
    assert folder.parent == memory
    assert folder.stat().st_mode & 0o777 == 0o700
    assert shared.shared_folder(tmp_path / "alias") == folder
    assert shared.shared_folder(type(data)("data")) == folder
    assert shared.shared_folder(tmp_path / "other") != folder


@pytest.mark.parametrize("taken", ["file", "link", "open"])
def test_what_somebody_else_put_there_is_not_used(memory, tmp_path, caplog, taken):
    data = tmp_path / "data"
    name = shared.shared_folder(data)
    shutil.rmtree(name)
    if taken == "file":
        name.write_text("")
    elif taken == "link":
        name.symlink_to(tmp_path)
    else:
        name.mkdir()
        name.chmod(0o777)
    assert shared.shared_folder(data) == data / "shm"
    assert "slower" in caplog.text


def test_without_room_in_memory_it_is_in_the_data_directory(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shared, "MEMORY", tmp_path / "absent")
    folder = shared.shared_folder(tmp_path / "data")
    assert folder == tmp_path / "data" / "shm"
    assert os.access(folder, os.W_OK)
    assert "slower" in caplog.text


def test_what_belongs_to_a_data_directory_that_is_gone_is_removed(memory, tmp_path):
    folders = {}
    for name in ("gone", "just gone", "kept"):
        (tmp_path / name).mkdir()
        folders[name] = shared.shared_folder(tmp_path / name)
        (folders[name] / "limits").write_text("")
        if name != "just gone":
            os.utime(folders[name] / shared.DATA, (0, 0), follow_symlinks=False)
    (tmp_path / "gone").rmdir()
    (tmp_path / "just gone").rmdir()
    shared.shared_folder(tmp_path / "new")
    assert {name for name in folders if folders[name].exists()} == {"just gone", "kept"}
    assert (folders["kept"] / "limits").exists()
