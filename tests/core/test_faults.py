"""Every system call of a publish on its data directory, failed in every way, and the publisher killed at each.

Enumerated, not sampled: a trace of one publish names the calls; then there is one publisher for each call and each way.
`make faults` strikes all; `make test` those that change something, each in one of three ways. docs/faults.md has the
figures.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import msgspec
import pytest
from core.publisher import BROKEN, CUT, INJECTIONS, INTERRUPTED_FOR_EVER, Ending, Fault, prepare
from lengths import EVERY_FAULT

import kserve

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(3600)]

HERE = Path(__file__).parent
NIGHTS = 3 if EVERY_FAULT else 2
"""The input that met the fault is published again; and the next one too, if there is time."""

ATTEMPTS = 5

REPEATABLE = {"OPENBLAS_NUM_THREADS": "1", "GLIBC_TUNABLES": f"glibc.pthread.stack_cache_size={1 << 30}"}
"""No threads of BLAS, and stacks of ended threads are kept: the calls are to be the same in every publisher."""

HOWS = [*INJECTIONS, *CUT]
USUAL = ["killed", "EIO once", "EIO for ever", *CUT]
"""What `make test` does: a call that fails once is the same to its caller with any number."""

SHARE = 3
"""Of the calls that `make test` strikes, one in so many in each of these ways, and others in the next."""

WRITES = {"write", "pwrite64", "writev", "pwritev"}
CHANGES = WRITES | {
    *(
        "mkdir",
        "mkdirat",
        "rmdir",
        "unlink",
        "unlinkat",
        "rename",
        "renameat",
        "renameat2",
        "link",
        "linkat",
        "symlink",
    ),
    *(
        "fallocate",
        "truncate",
        "ftruncate",
        "fsync",
        "fdatasync",
        "msync",
        "fchmod",
        "chmod",
        "fchmodat",
        "sync_file_range",
    ),
}
MUST_TELL = WRITES | {"fallocate", "ftruncate", "fsync", "fdatasync", "msync", "rename", "fchmod"}
"""When one of these fails for lack of a disk, nobody may say that all went well."""

ERRORS = {kind.exit_code for kind in (kserve.StorageError, kserve.SnapshotError)}
UNREADABLE = {kind.exit_code for kind in (kserve.InputError, kserve.SettingError)}
"""When nothing can be opened or read any more, it may be the input or the key that cannot."""


class Call(NamedTuple):
    """A system call of the publisher: the n-th of that name, and the ``place``-th of those on the data directory."""

    name: str
    n: int
    place: int
    line: str

    @property
    def changes(self) -> bool:
        return self.name in CHANGES or (self.name == "openat" and ("O_CREAT" in self.line or "O_TMPFILE" in self.line))


class Publishers:
    """Processes that fork publishers, as many as there are processors."""

    def __init__(self, root: Path, shim: Path) -> None:
        self._idle: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
        self._log = (root / "errors").open("w")
        self.all = [self._start(root, shim) for _ in range(os.cpu_count() or 1)]
        for process in self.all:
            self._idle.put(process)

    def _start(self, root: Path, shim: Path) -> subprocess.Popen[str]:
        command = [sys.executable, str(HERE / "publisher.py"), str(root), str(shim)]
        preload = " ".join(filter(None, [str(shim), os.environ.get("LD_PRELOAD")]))
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | REPEATABLE | {"LD_PRELOAD": preload},
        )

    def run(self, fault: Fault) -> Ending:
        process = self._idle.get()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(fault).decode() + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, f"the publishers' parent failed: {Path(self._log.name).read_text()}"
        ending = msgspec.json.decode(answer, type=Ending)
        self._idle.put(process)
        return ending

    def strike(self, call: Call, how: str) -> Ending:
        """A publisher that has met a fault at this call."""
        n = call.n
        for _ in range(ATTEMPTS):
            ending = self.run(Fault(call.name, n, how, NIGHTS))
            if how in CUT or ending.struck == call.place:
                break
            # What other threads and malloc do has shifted the numbers: look again.
            n = dict(enumerate(self.run(Fault(call.name, 0, "")).numbers, 1)).get(call.place, n)
        return ending

    def strike_all(self, calls: list[Call], how: str) -> list[Ending]:
        with ThreadPoolExecutor(len(self.all)) as threads:
            return list(threads.map(self.strike, calls, repeat(how)))

    def stop(self) -> None:
        for process in self.all:
            process.kill()
            process.communicate()
        self._log.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder on a real file system: tmpfs, for one, never lacks a page."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed (scripts/apt strace)")
    for folder in (
        tmp_path_factory.mktemp("faults"),
        HERE.parents[1] / "build" / "faults",
        Path("/var/tmp/kserve-faults"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        kind = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True).stdout
        if kind.strip() not in ("tmpfs", "ramfs"):
            prepare(folder)
            yield folder
            shutil.rmtree(folder)
            return
    pytest.skip("every writable folder is in memory")


@pytest.fixture(scope="module")
def publishers(root):
    shim = root / "faults.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-w", "-o", shim, HERE / "faults.c"], check=True)
    publishers = Publishers(root, shim)
    yield publishers
    publishers.stop()


@pytest.fixture(scope="module")
def calls(publishers):
    """Every call of a publish that touches the data directory; they are all made by its main thread."""
    ending = publishers.run(Fault("", 0, ""))
    if not Path(ending.trace).exists():
        pytest.skip(f"strace may not trace here: {ending.said}")
    assert (ending.code, ending.wrong) == (0, ""), ending
    folder = str(Path(ending.trace).with_name("data"))
    found, numbers, places, main = [], Counter(), Counter(), str(ending.pid)
    for line in Path(ending.trace).read_text().splitlines():
        call = re.match(r"(\d+) +(\w+)\(", line)
        if call is None:
            continue
        numbers[call[1], call[2]] += 1
        if folder in line:
            assert call[1] == main, f"a call of another thread: {line}"
            places[call[2]] += 1
            found.append(Call(call[2], numbers[main, call[2]], places[call[2]], line))
    return found


def struck_by(calls: list[Call], how: str) -> list[Call]:
    if how in CUT:
        writes = [call for call in calls if call.name in WRITES]
        struck = [call._replace(n=n, place=n) for n, call in enumerate(writes, 1)]
    else:
        struck = [call for call in calls if EVERY_FAULT or call.changes]
    assert len(struck) > 10
    return struck if EVERY_FAULT else struck[USUAL.index(how) % SHARE :: SHARE]


def wrong(call: Call, how: str, ending: Ending) -> str:
    """What is wrong with how a publisher ended, or with what it left."""
    allowed = {0, *ERRORS}
    if how == "killed":
        allowed = {-signal.SIGKILL}
    elif how == INTERRUPTED_FOR_EVER:
        allowed |= {-signal.SIGALRM}
    elif call.name in MUST_TELL and not how.startswith("EINTR") and how not in CUT:
        allowed = ERRORS
    if how.endswith("for ever") and how not in CUT and call.name not in CHANGES:
        allowed = allowed | UNREADABLE
    if ending.code not in allowed:
        return f"it ended with {ending.code}: {ending.said}"
    if ending.struck != call.place:
        return f"call {ending.struck} on the data directory was struck in place of {call.place}"
    return ending.wrong


@pytest.mark.parametrize("how", HOWS if EVERY_FAULT else USUAL)
def test_no_failing_call_leaves_anything_half_made(publishers, calls, capsys, how):
    struck = struck_by(calls, how)
    start = time.monotonic()
    endings = publishers.strike_all(struck, how)
    seconds = time.monotonic() - start
    codes = Counter(ending.code for ending in endings)
    with capsys.disabled():
        print(f"\n{how}: {len(struck)} faults in {seconds:.0f} s, exit codes {dict(codes)}", end=" ")
    bad = [(call, why) for call, ending in zip(struck, endings, strict=True) if (why := wrong(call, how, ending))]
    assert not bad, f"{len(bad)} of {len(struck)}:\n" + "\n".join(f"{call}: {why}" for call, why in bad[:20])


def test_a_full_disk_is_one_clear_line(publishers, calls):
    first = next(call for call in calls if call.name == "fallocate")
    ending = publishers.strike(first, "ENOSPC once")
    assert ending.code == kserve.StorageError.exit_code
    assert ending.said.startswith("StorageError: ")
    assert "No space left on device" in ending.said
    assert "free some space" in ending.said
    assert "\n" not in ending.said


def test_an_ending_nobody_expects_would_be_seen():
    call = Call("fsync", 7, 5, "")
    fine = Ending(kserve.StorageError.exit_code, "", 5, "", 1, [], "")
    assert wrong(call, "EIO once", fine) == ""
    for changes in ({"code": 0}, {"code": BROKEN}, {"struck": 4}, {"wrong": "two versions"}):
        assert wrong(call, "EIO once", msgspec.structs.replace(fine, **changes))
