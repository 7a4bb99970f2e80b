"""Progress bars: on a terminal, on standard error, and nowhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import threading
from pathlib import Path

import pytest
from cli.support import DAY_ONE, KSERVE, done, process


def on_terminal(*arguments: str) -> tuple[str, str]:
    """Standard output, and what a terminal as standard error gets to see."""
    terminal, inside = pty.openpty()
    seen: list[bytes] = []

    def watch() -> None:
        while True:
            try:
                seen.append(os.read(terminal, 65536))
            except OSError:  # the other end is closed
                return

    watcher = threading.Thread(target=watch)
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    popen = subprocess.Popen([*KSERVE, *arguments], stdout=subprocess.PIPE, stderr=inside, text=True, env=environment)
    os.close(inside)
    watcher.start()
    out = popen.communicate(timeout=60)[0]
    watcher.join(20)
    os.close(terminal)
    assert popen.returncode == 0
    return out, b"".join(seen).decode()


@pytest.mark.heavy
def test_bars_for_all_that_takes_long(inputs: Path) -> None:
    out, seen = on_terminal("synth", "day3", "--profiles", "100000", "--day", "3", "--json")
    assert "making profiles" in seen
    assert len(out.splitlines()) == 1
    done("synth", "day2-of-many", "--profiles", "100000", "--day", "2", "--scored-at", DAY_ONE)
    done("publish", "day2-of-many", "--first")
    out, seen = on_terminal("publish", "day3")
    for stage in ("reading rows", "writing bytes", "verifying bytes", "comparing profiles"):
        assert stage in seen
    assert "6  watch" in out


@pytest.mark.heavy
def test_no_bars_elsewhere(inputs: Path) -> None:
    assert process("synth", "day3", "--profiles", 1000).err == ""
    assert process("publish", "day3", "--first").err == ""
