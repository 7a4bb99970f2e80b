"""The database: shared by processes and threads, and never half-written."""

from __future__ import annotations

import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from notices.support import python

from kserve.errors import Busy, StorageError
from kserve.notices import store as store_module
from kserve.notices.store import Store

WRITER = """
import sys
from kserve.notices.store import Store
store = Store(sys.argv[1])
for n in range(int(sys.argv[3])):
    with store.writing():
        count = int(store.fact("count") or 0)
        store.keep("count", str(count + 1))
        store.keep(f"mine {sys.argv[2]} {n}", str(count + 1))
    print(n, flush=True)
"""


def ended(process: subprocess.Popen[str]) -> None:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, (out, err)


@pytest.mark.heavy
def test_processes_that_begin_together_take_turns(data: Path) -> None:
    processes = [python(WRITER, data, name, 20) for name in ("a", "b")]
    for process in processes:
        ended(process)
    with Store(data) as store:
        assert store.fact("count") == "40"


def test_threads_take_turns(store: Store) -> None:
    def add() -> None:
        for _ in range(20):
            with store.writing():
                store.keep("count", str(int(store.fact("count") or 0) + 1))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.fact("count") == "80"


@pytest.mark.heavy
def test_a_killed_writer_leaves_all_of_a_transaction_or_nothing(data: Path) -> None:
    for kill in range(3):
        process = python(WRITER, data, kill, 10_000)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.02 * kill)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with Store(data) as store:
        marks = store.row("SELECT count(*) AS n FROM facts WHERE name LIKE 'mine %'")
        assert marks is not None
        assert store.fact("count") == str(marks["n"])


def write_and_fail(store: Store, name: str) -> None:
    with store.writing():
        with store.writing():
            store.keep(name, "1")
        raise ZeroDivisionError


def test_an_inner_transaction_is_undone_alone(store: Store) -> None:
    with store.writing():
        store.keep("outer", "1")
        with pytest.raises(ZeroDivisionError):
            write_and_fail(store, "inner")
        assert store.fact("inner") is None
    assert store.fact("outer") == "1"


def test_the_outer_transaction_is_undone_with_all_in_it(store: Store) -> None:
    with pytest.raises(ZeroDivisionError):
        write_and_fail(store, "inner")
    assert store.fact("inner") is None
    store.keep("inner", "2")


def test_nobody_else_may_read_secrets(store: Store) -> None:
    store.keep("a", "b")
    for file in store.path.parent.glob("notices.db*"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_busy_says_so(data: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.05)
    with store.writing(), Store(data) as other:
        assert other.fact("a") is None
        with pytest.raises(Busy, match=r"notices\.db"):
            other.keep("a", "b")
    other = Store(data)
    other.keep("a", "b")
    other.close()


@pytest.mark.parametrize("content", [b"x" * 5000, b"SQLite format 3\x00" + b"x" * 5000])
def test_a_file_that_is_no_database_is_named(data: Path, content: bytes) -> None:
    (data / "notices.db").write_bytes(content)
    with pytest.raises(StorageError, match=r"notices\.db"):
        Store(data)


def test_a_newer_schema_is_left_alone(data: Path, store: Store) -> None:
    store.close()
    with sqlite3.connect(data / "notices.db") as connection:
        connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(StorageError, match="newer kserve"):
        Store(data)


def test_no_data_directory(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="--data"):
        Store(tmp_path / "nowhere")


def write_much(store: Store) -> None:
    with store.writing():
        store.keep("a", "2")
        store.keep("b", "x" * 1_000_000)


def test_a_full_disk_is_an_error_and_leaves_what_was(store: Store) -> None:
    store.keep("a", "1")
    store.rows("PRAGMA max_page_count = 1")
    with pytest.raises(StorageError, match="full"):
        write_much(store)
    assert (store.fact("a"), store.fact("b")) == ("1", None)
    store.rows("PRAGMA max_page_count = 100000")
    store.keep("a", "3")


def test_a_second_connection_leaves_the_locks_of_the_first(data: Path) -> None:
    """A file that is closed loses all locks of its process: others would take the database away from under us."""
    with Store(data) as ours:
        ours.keep("old", "1")
        Store(data).close()
        script = (
            "import sys; from kserve.notices.store import Store as S; s = S(sys.argv[1]); s.keep('n', '2'); s.close()"
        )
        subprocess.run([sys.executable, "-c", script, str(data)], check=True)
        assert ours.fact("n") == "2"
        ours.keep("after", "3")
        with Store(data) as other:
            assert other.fact("after") == "3"
