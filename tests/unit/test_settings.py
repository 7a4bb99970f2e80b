"""Settings: documented, overridden in the order that the docs promise, refused with their name."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from kserve import SettingError
from kserve.settings import Settings, load

DOCS = Path(__file__).parents[2] / "docs"


def defaults(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every setting by its full name, such as gates.rows_fewer, and its default as the docs write it."""
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from defaults(type(field.default), f"{prefix}{name}.")
        elif isinstance(field.default, dict | tuple):
            yield prefix + name, ", ".join(field.default)
        else:
            yield prefix + name, "" if field.default is None else str(field.default).lower()


def test_every_setting_is_documented_with_its_default():
    rows = re.findall(r"^\| `([\w.]+)` \| (?:`([^`]*)`)? ?\| (.+) \|$", (DOCS / "settings.md").read_text(), re.M)
    assert len(rows) == len({name for name, _, _ in rows})
    assert {name: default.lower() for name, default, _ in rows} == dict(defaults(Settings))


def test_a_threshold_is_set_like_any_other_setting(tmp_path, monkeypatch):
    file = tmp_path / "settings.toml"
    file.write_text("[gates]\nrows_fewer = 0.02\nmass = 0.05\n[models.new]\nmean = 0.3\n")
    monkeypatch.setenv("KSERVE_CONFIG", str(file))
    monkeypatch.setenv("KSERVE_GATES__MASS", "0.04")
    settings = load()
    assert (settings.gates.rows_fewer, settings.gates.mass, settings.gates.size) == (0.02, 0.04, 0.1)
    assert settings.models["new"] == {"mean": 0.3}
    monkeypatch.setenv("KSERVE_GATES__MASS", "-1")
    with pytest.raises(SettingError, match=r"setting gates\.mass"):
        load()


def test_flags_beat_the_environment_beats_the_file(tmp_path, monkeypatch):
    file = tmp_path / "settings.toml"
    file.write_text("port = 1\nbatch_limit = 1\nhost = '::1'\n")
    monkeypatch.setenv("KSERVE_CONFIG", str(file))
    monkeypatch.setenv("KSERVE_PORT", "2")
    monkeypatch.setenv("KSERVE_BATCH_LIMIT", "2")
    settings = load(port=3, batch_limit=None)
    assert (settings.port, settings.batch_limit, settings.host) == (3, 2, "::1")


@pytest.mark.parametrize(
    ("flags", "name"),
    [({"port": 70000}, "port"), ({"verify_at_open": "no"}, "verify_at_open"), ({"body_limit": 1}, "body_limit")],
)
def test_a_value_that_cannot_be_used_is_named(flags, name):
    with pytest.raises(SettingError, match=f"setting {name}: .* got") as caught:
        load(**flags)
    assert caught.value.exit_code == 8


def test_a_setting_that_there_is_not_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "settings.toml"
    file.write_text("prot = 1\n")
    monkeypatch.setenv("KSERVE_CONFIG", str(file))
    with pytest.raises(SettingError, match="prot"):
        load()


def test_a_file_that_is_no_toml_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "settings.toml"
    file.write_text("port 1\n")
    monkeypatch.setenv("KSERVE_CONFIG", str(file))
    with pytest.raises(SettingError, match=r"settings\.toml"):
        load()


def test_a_named_file_that_is_missing_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("KSERVE_CONFIG", str(tmp_path / "nowhere.toml"))
    with pytest.raises(SettingError, match=r"nowhere\.toml"):
        load()
