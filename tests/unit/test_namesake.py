"""The Kubernetes model server of the same name must not be installed beside this one."""

import pytest

import kserve
from kserve.namesake import refuse_namesake


def test_alone_is_well():
    refuse_namesake()


def test_both_are_refused(tmp_path, monkeypatch):
    info = tmp_path / "kserve-0.15.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kserve\nVersion: 0.15.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(kserve.SettingError, match=r"0\.15\.0, the Kubernetes.*pip uninstall kserve"):
        kserve.open(tmp_path)
