"""A process that has imported all that a publish needs, and forks a publisher for each fault. test_faults.py runs it.

`publisher.py ROOT SHIM`: reads faults from its standard input, a line of JSON each, and answers each with an ending.
The publisher stops before its cycle, strace attaches to its main thread, and from then on its calls count.
"""

import contextlib
import ctypes
import functools
import importlib
import itertools
import mmap
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

import kserve
from kserve.settings import Gates, Settings
from kserve.snapshots.build import OPTED_OUT, Options
from kserve.snapshots.catalog import MANIFEST, SNAPSHOT, Catalog
from kserve.snapshots.completeness import write_manifest
from kserve.snapshots.cycle import Request, publish
from kserve.snapshots.report import Report
from kserve.snapshots.signing import Trust, admit, check_order, check_version, create

sys.path.append(str(Path(__file__).parents[1]))
import snapshots

PROFILES = 200
BROKEN = 99
"""Exit code of a publisher that ended in anything but an error of kserve."""

SECONDS = 30
SAID_BYTES = 1 << 18
STACKS = 8
SPINNING_SECONDS = 0.5
"""After which a publisher whose calls are all interrupted is stopped: it rightly tries for ever."""

INJECTIONS = {
    "killed": "signal=SIGKILL:when={n}",
    "EIO once": "error=EIO:when={n}",
    "EIO for ever": "error=EIO:when={n}+",
    "ENOSPC once": "error=ENOSPC:when={n}",
    "ENOSPC for ever": "error=ENOSPC:when={n}+",
    "EINTR once": "error=EINTR:when={n}",
    "EINTR for ever": "error=EINTR:when={n}+",
}
CUT = ("short once", "short for ever")
"""Half of what was to be written is: strace cannot do that, so a preloaded library does."""

INTERRUPTED_FOR_EVER = "EINTR for ever"


class Fault(msgspec.Struct, frozen=True):
    """The n-th of these calls fails in this way. No ``how``: none fails, they are traced; no ``call``: all are."""

    call: str
    n: int
    how: str
    nights: int = 2
    """Until which night others publish after it."""


class Ending(msgspec.Struct, frozen=True):
    """How a publisher ended, and what is wrong with what it left behind."""

    code: int
    said: str
    struck: int
    """Which of the calls of that name on the data directory failed first, from 1; 0: another call, or none."""
    wrong: str
    pid: int
    numbers: list[int]
    """By place, from 0, which of all calls of that name are on the data directory, from 1."""
    trace: str


class Quiet:
    """Who is told, and says nothing."""

    def progress(self, stage: str, done: int, total: int) -> None: ...
    def step(self, name: str, result: str) -> None: ...
    def report(self, report: Report) -> None: ...
    def warn(self, text: str) -> None: ...


@functools.cache
def settings_of(root: Path) -> Settings:
    """Signed, and with gates that a few profiles can pass."""
    wide = Gates(size=9, mass=1, psi=99, psi_warn=99, ks=1, ks_warn=1, moved=1, moved_far=1, drift_psi=99)
    return Settings(gates=wide, cadence=1e6, signing_key=root / "key", trusted_keys=root / "key.pub", by="test")


def prepare(root: Path) -> None:
    """Three nights of input, the first of them published in ``base``, and what publishing all of them makes."""
    create(root / "key")
    for night in (1, 2, 3):
        folder = root / f"night{night}"
        folder.mkdir(parents=True)
        rows = [
            {
                "profile_id": i,
                "score": 20.0 + i % 50 + (night if i < 2 else 0),
                "tw_name": f"n{i}",
                "topics": [{"topic": "t", "score": 2.0}],
                "location": "US",
                "opted_out": i == PROFILES - 1,
            }
            for i in range(PROFILES)
        ]
        snapshots.write_parquet(folder / "part.parquet", rows)
        now = datetime.now(UTC).replace(microsecond=0)
        write_manifest(folder, now - timedelta(days=10 - night))
    cycle(root, root / "base", 1, first=True)
    shutil.copytree(root / "base", root / "whole")
    for night in (2, 3):
        cycle(root, root / "whole", night)
    (root / "made.json").write_bytes(msgspec.json.encode(made(root / "whole")))


def made(data: Path) -> dict[str, Any]:
    """By version, what there is to know of what was published: its manifest, and who has opted out.

    The versions are named by their content, so those of a publish that met a fault must be the same.
    """
    catalog = Catalog(data)
    versions = sorted(os.listdir(catalog.snapshots))
    found = {}
    for version in versions:
        manifest = {name: value for name, value in catalog.manifest(version).items() if name != "built_at"}
        found[version] = manifest | {"erased": (catalog.snapshots / version / OPTED_OUT).read_bytes().hex()}
    return found


def cycle(root: Path, data: Path, night: int, first: bool = False) -> str:
    """Publish the input of a night; the version."""
    request = Request(source=root / f"night{night}", options=Options(), first=first)
    outcome = publish(Catalog(data), settings_of(root).model_copy(update={"data": data}), request, Quiet())
    assert outcome.announced
    return outcome.version


def check(root: Path, data: Path, code: int, nights: int) -> None:
    """One whole version is in force, that of night 1 or 2; nothing broken is in sight; the next publishes succeed."""
    trust = Trust.load(root / "key.pub")
    live = whole(root, data, trust)
    if code == 0:
        assert live == 2, "it said that it had published"
    for night in range(2, nights + 1):
        cycle(root, data, night)
        assert whole(root, data, trust) == night
    left = [path for path in data.rglob("*") if path.name.startswith((".", "damaged", "deleted"))]
    left += [*(data / "work").iterdir(), *(data / "candidates").iterdir()]
    assert not left, f"left behind: {[str(path.relative_to(data)) for path in left]}"


def whole(root: Path, data: Path, trust: Trust) -> int:
    """The night of the version in force, after all that is in sight was verified."""
    catalog = Catalog(data)
    live, order = catalog.announced(), catalog.order()
    assert live is not None
    assert order is not None
    check_order(order, trust, data / "CURRENT")
    admit(order, live, None)
    check_version(catalog.snapshots / live, trust)
    for version in catalog.versions():
        with catalog.reread(version.name) as snapshot:
            profile_id, score = snapshot.known_answer()
            assert snapshot.score(profile_id) == score
    for folder in [*catalog.candidates.iterdir(), *catalog.snapshots.iterdir()]:
        assert (folder / SNAPSHOT).exists(), folder
        assert (folder / MANIFEST).exists(), folder
    catalog.log.verify()
    expected = msgspec.json.decode((root / "made.json").read_bytes())
    for version, found in made(data).items():
        assert found == expected.get(version), f"{version} is not what a publish without a fault makes: {found}"
    return 1 + sorted(expected).index(live)


class Forked:
    """A child that runs one function, and what it says. It says it in shared memory, which takes no system call."""

    def __init__(self, act: Callable[[], object], begin: Callable[[], object] = lambda: None) -> None:
        self._said = mmap.mmap(-1, SAID_BYTES)
        self.pid = os.fork()
        if self.pid == 0:
            begin()
            os._exit(self._run(act))

    def _run(self, act: Callable[[], object]) -> int:
        try:
            act()
        except kserve.KserveError as error:
            code, text = error.exit_code, f"{type(error).__name__}: {error}"
        except BaseException:
            code, text = BROKEN, traceback.format_exc()
        else:
            return 0
        encoded = text.encode()[-SAID_BYTES:]
        self._said[: len(encoded)] = encoded
        return code

    def wait(self, seconds: float) -> int:
        """Its exit code, or the negative number of the signal that ended it. Ends it after these seconds."""
        descriptor = os.pidfd_open(self.pid)
        if not select.select([descriptor], [], [], seconds)[0]:
            os.kill(self.pid, signal.SIGKILL)
            self._said[:7] = b"it hung"
        os.close(descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def said(self) -> str:
        """What went wrong in it; it is gone then."""
        text = self._said[:].rstrip(b"\0").decode(errors="replace")
        self._said.close()
        return text


def run(root: Path, shim: ctypes.CDLL, number: int, fault: Fault) -> Ending:
    """One publisher, one fault."""
    folder = root / f"run-{os.getpid()}-{number}"
    data = folder / "data"
    shutil.copytree(root / "base", data)
    publisher = Forked(lambda: cycle(root, data, 2), lambda: begin(shim, data, fault))
    os.waitpid(publisher.pid, os.WUNTRACED)
    with traced(publisher.pid, fault, folder / "trace") if fault.how not in CUT else contextlib.nullcontext():
        os.kill(publisher.pid, signal.SIGCONT)
        code = publisher.wait(SECONDS)
    checker = Forked(lambda: check(root, data, code, fault.nights))
    wrong = f"{checker.said()}" if checker.wait(SECONDS) else ""
    struck, numbers = (fault.n, []) if fault.how in CUT else places(folder / "trace", data, fault)
    ending = Ending(code, publisher.said(), struck, wrong, publisher.pid, numbers, str(folder / "trace"))
    if fault.call and not wrong:
        shutil.rmtree(folder)
    return ending


def begin(shim: ctypes.CDLL, data: Path, fault: Fault) -> None:
    """In the publisher: wait for strace."""
    if fault.how in CUT:
        shim.cut(os.fsencode(data), fault.n, fault.how == CUT[1])
    keep_stacks()
    os.kill(os.getpid(), signal.SIGSTOP)
    if fault.how == INTERRUPTED_FOR_EVER:
        signal.setitimer(signal.ITIMER_REAL, SPINNING_SECONDS)


def keep_stacks() -> None:
    """Leave the C library the stacks of ended threads, or whether a new thread maps one hangs on when others end."""
    barrier = threading.Barrier(STACKS)
    threads = [threading.Thread(target=barrier.wait) for _ in range(STACKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    while len(os.listdir("/proc/self/task")) > 1:
        time.sleep(0.001)


@contextlib.contextmanager
def traced(pid: int, fault: Fault, trace: Path) -> Iterator[None]:
    """strace at this process; of all its threads when no call is to fail, else of the main one."""
    if fault.call:
        what = [
            "-y",
            "-e",
            f"trace={fault.call}",
            "-e",
            f"inject={fault.call}:{INJECTIONS[fault.how].format(n=fault.n)}",
        ]
    else:
        what = ["-f", "-y"]
    command = ["strace", *what, "-o", str(trace), "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        said = strace.stderr.readline()
        assert "attached" in said, said
        yield


def places(trace: Path, data: Path, fault: Fault) -> tuple[int, list[int]]:
    """Of an ending, ``struck`` and ``numbers``."""
    numbers: list[int] = []
    lines = trace.read_text().splitlines()
    for number, (line, following) in enumerate(itertools.pairwise([*lines, ""]), 1):
        mine = str(data) in line
        if mine:
            numbers.append(number)
        if "(INJECTED)" in line or (fault.how == "killed" and "killed by SIGKILL" in following):
            return (len(numbers) if mine else 0), numbers
    return 0, numbers


def load_all(root: Path) -> None:
    """Import what a publish imports on its way: that is no call of its own."""

    folder = root / f"loading-{os.getpid()}"
    shutil.copytree(root / "base", folder)

    def publish_and_tell() -> None:
        cycle(root, folder, 2)
        raise kserve.KserveError(" ".join(sys.modules))

    child = Forked(publish_and_tell)
    code, said = child.wait(SECONDS), child.said()
    assert code == kserve.KserveError.exit_code, said
    for name in said.split()[1:]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    shutil.rmtree(folder)


def main() -> None:
    root, shim = Path(sys.argv[1]), ctypes.CDLL(sys.argv[2])
    load_all(root)
    for number, line in enumerate(sys.stdin):
        ending = run(root, shim, number, msgspec.json.decode(line, type=Fault))
        print(msgspec.json.encode(ending).decode(), flush=True)


if __name__ == "__main__":
    main()
