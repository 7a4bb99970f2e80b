"""Commands run in this process or as processes, and what they print."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kserve.cli import main

DAY = timedelta(days=1)
DAY_TWO = datetime.now(UTC).replace(microsecond=0)
DAY_ONE = DAY_TWO - DAY
"""When the scores of the two inputs were made."""

TAXONOMY = ("--topics", "day1/topics.csv", "--topic-edges", "day1/topic_edges.csv")
ALONE = ("--port", 0, "--admin-port", 0, "--workers", 1, "--open")
"""Options of a server that minds nobody else."""

KSERVE = [sys.executable, "-m", "kserve"]


class Result(NamedTuple):
    code: int
    out: str
    err: str

    def json(self) -> Any:
        """The one document on standard output."""
        (line,) = self.out.splitlines()
        return json.loads(line)

    def error(self) -> Any:
        """The error of a failed command that was run with --json; it is one line on standard error too."""
        error = self.json()["error"]
        assert error["exit_code"] == self.code
        assert error["message"] in self.err
        self.one_line()
        return error

    def one_line(self) -> str:
        """The one line on standard error."""
        assert "Traceback" not in self.err
        (line,) = self.err.splitlines()
        assert line.startswith("kserve: ")
        return line


def run(*arguments: object) -> Result:
    """A command, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert isinstance(end.value.code, int)
    return Result(end.value.code, out.getvalue(), err.getvalue())


def done(*arguments: object) -> Result:
    """A command that must succeed."""
    result = run(*arguments)
    assert result.code == 0, result
    return result


def process(*arguments: object, **options: Any) -> Result:
    """A command as a process, to its end."""
    ended = subprocess.run([*KSERVE, *map(str, arguments)], capture_output=True, text=True, timeout=100, **options)
    return Result(ended.returncode, ended.stdout, ended.stderr)


@contextlib.contextmanager
def started(*arguments: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A command as a process that goes on; killed at the end if it still does."""
    popen = subprocess.Popen(
        [*KSERVE, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )
    try:
        yield popen
    finally:
        popen.kill()
        popen.communicate()


def ended(popen: subprocess.Popen[str], number: signal.Signals) -> Result:
    """The end of a process after a signal."""
    os.kill(popen.pid, number)
    out, err = popen.communicate(timeout=60)
    return Result(popen.returncode, out, err)


def tree(folder: Path) -> set[str]:
    """Everything below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
