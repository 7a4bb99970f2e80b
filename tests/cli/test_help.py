"""Help that teaches, with examples that work; docs/cli.md; completion."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
import typing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import typer
from cli.support import done, process, run

from kserve import errors
from kserve.cli import INTERRUPTED, app, output
from kserve.settings import Settings
from kserve.snapshots.catalog import Catalog

GROUP: typing.Any = typer.main.get_command(app)


def flattened(group: typing.Any, before: str = "") -> Iterator[tuple[str, typing.Any]]:
    """All commands by name, such as "quarantine list"."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from flattened(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


COMMANDS = dict(flattened(GROUP))
PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
VERSION = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")
EXAMPLE = re.compile(r"^ *\$ (kserve .*)$", re.MULTILINE)
WITHIN = (
    "synth",
    "manifest",
    "build",
    "publish",
    "history",
    "status",
    "show",
    "get",
    "eligible",
    "pin",
    "unpin",
    "prune",
)
"""Commands whose examples can follow each other."""

ON_TWO_NIGHTS = ("check", "diff", "quarantine list", "quarantine add", "quarantine release", "rollback")
"""And those whose examples need more; they name versions that are put in place of."""


def chapter(name: str) -> str:
    """The text of docs/cli.md under a heading."""
    found = re.search(rf"^## {name}$(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/cli.md has no chapter {name}"
    return found[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_when_and_how(name: str) -> None:
    what, when, example, line = COMMANDS[name].help.split("\n\n")
    assert what.endswith(".")
    assert len(when) > 80
    assert example == "Example:"
    assert EXAMPLE.fullmatch(line)
    assert all(parameter.help for parameter in COMMANDS[name].params)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_shown(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    shown = done(*name.split(), "--help").out + capfd.readouterr().out
    assert f"Usage: kserve {name}" in " ".join(shown.split())


def test_examples_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in WITHIN:
        for line in EXAMPLE.findall(COMMANDS[name].help):
            done(*shlex.split(line)[1:])


def test_examples_on_two_nights_work(nights: Path) -> None:
    candidate, live, before = (version.name for version in Catalog("data").versions())
    places = {
        "check": (live,),
        "diff": (before, live),
        "quarantine add": (candidate,),
        "quarantine release": (candidate,),
    }
    for name in ON_TWO_NIGHTS:
        (line,) = EXAMPLE.findall(COMMANDS[name].help)
        words = shlex.split(line)[1:]
        versions = iter(places.get(name, ()))
        words = [next(versions) if VERSION.fullmatch(word) else word for word in words]
        assert run(*words).code == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_json_and_data(name: str) -> None:
    options = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    assert {"--json", "--data"} - ({"--data"} if name.startswith("keys signing") else set()) <= options


def options_of(name: str) -> set[str]:
    found = [one for one in COMMANDS[name].params if isinstance(one, typer.core.TyperOption)]
    return {option for parameter in found for option in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("name", sorted({name.split()[0] for name in COMMANDS}))
def test_page_lists_every_option(name: str) -> None:
    page = chapter(f"kserve {name}")
    for command in COMMANDS:
        if command.split()[0] == name:
            assert f"kserve {command}" in page
            assert options_of(command) - set(re.findall(r"--[a-z][a-z-]*", page)) == set()
    known = set().union(*map(options_of, COMMANDS))
    assert set(re.findall(r"--[a-z][a-z-]*", page)) <= known


def test_page_lists_the_options_of_kserve_itself() -> None:
    page = PAGE.read_text()
    assert all(option in page for parameter in GROUP.params for option in parameter.opts)
    assert "`-h`" in page


def test_page_lists_every_exit_code() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", chapter("Exit codes"), re.MULTILINE)
    listed = {int(code): set(re.findall(r"`([a-z-]+)`", slugs)) for code, slugs in rows}
    expected: dict[int, set[str]] = {0: set(), 2: {"usage"}, INTERRUPTED: set(), output.BROKEN_PIPE: set()}
    for _, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.KserveError):
            expected.setdefault(kind.exit_code, set()).add(kind.slug)
    assert listed == expected


def test_every_setting_of_the_server_is_a_flag_with_its_help() -> None:
    """All but those of a publisher, and those that are tables."""
    publishing = {"max_rejects", "require_manifest", "golden", "cadence", "stage", "stage_timeout", "by"}
    flags = {parameter.name: parameter for parameter in COMMANDS["serve"].params}
    tables = {"gates", "models", "watch", "tiers", "failures", "shedding"}
    assert flags.keys() - {"as_json"} == Settings.model_fields.keys() - publishing - tables
    for name in flags.keys() - {"as_json", "data"}:
        description = Settings.model_fields[name].description
        assert description is not None
        assert flags[name].help[1:] == description[1:] + "."
    assert {"host", "port"} <= {parameter.name for parameter in COMMANDS["demo"].params}


def complete(words: str) -> list[str]:
    """What bash would be offered for the last of these words, which may be empty yet."""
    position = len(words.split(" ")) - 1
    environment = {"_KSERVE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(position)}
    return process(env=os.environ | environment).out.split()


@pytest.mark.heavy
def test_completion(published: Path) -> None:
    versions = [version["version"] for version in done("history", "--json").json()["versions"]]
    offered = {
        **dict.fromkeys(["show ", "publish ", "check ", "rollback ", "diff ", f"diff {versions[0]} "], versions),
        "publish day1 --accept m": ["mass=", "movement="],
        "publish day1 --declare ": ["model=2011-10"],
        "get 42 --version ": versions,
        "show --data nothing ": [],
        "build day1 --topic-": ["--topic-edges"],
    }
    with ThreadPoolExecutor(2) as threads:
        commands, *found = threads.map(complete, ["kserve ", *(f"kserve {words}" for words in offered)])
    assert {name.split()[0] for name in COMMANDS} <= set(commands)
    assert dict(zip(offered, found, strict=True)) == offered


def test_completion_can_be_installed() -> None:
    """Typer asks which shell its parent is, so its parent is bash here."""
    script = f"{sys.executable} -m kserve --show-completion; true"
    shown = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert "_KSERVE_COMPLETE" in shown.stdout
