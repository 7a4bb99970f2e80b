"""What commands print: text for people, one JSON document for programs, and progress on a terminal."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

import typer

from kserve.cli import drawing
from kserve.errors import KserveError

Report = Callable[[str, int, int], None]
"""Called with a stage, how much of it is done, and how much there is."""

BROKEN_PIPE = 141
"""Exit code when the reader of our output went away, as of a process that SIGPIPE ended."""

NARROW = 160
"""Columns of a table that is not printed on a terminal: enough that nothing is cut."""


def say(text: str = "") -> None:
    """A line on standard output, at once. Commands print there in no other way."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _hush(sys.stdout)
        raise typer.Exit(BROKEN_PIPE) from None


def _hush(stream: TextIO) -> None:
    """What is printed is for nobody from now on; or the interpreter complains at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def aside() -> Iterator[None]:
    """What is printed in here is by the way: that it cannot be written ends nothing, and is no failure."""
    try:
        yield
    except typer.Exit:
        pass
    except OSError:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                _hush(stream)


def emit(document: dict[str, Any]) -> None:
    """The one JSON document of a command. ASCII, so that no locale can spoil it."""
    say(json.dumps(document))


def warn(text: str) -> None:
    """A line on standard error, with our name before it; where it cannot be written there is nobody to be told."""
    with aside():
        print(f"kserve: {' '.join(text.split())}", file=sys.stderr, flush=True)


def error_document(error: KserveError) -> dict[str, Any]:
    """An error as JSON: slug, message, exit code, and what its class knows: file, row, field, remedy, ..."""
    known = {name: value for name, value in vars(error).items() if value is not None and not name.startswith("_")}
    ids = {name: str(value) for name, value in known.items() if name.endswith("_id")}
    return {"slug": error.slug, "message": str(error), "exit_code": error.exit_code} | known | ids


def card(rows: Iterable[tuple[str, str]]) -> None:
    """Labels and values, aligned."""
    lines = list(rows)
    width = max(len(label) for label, _ in lines)
    for label, value in lines:
        say(f"{label:<{width}}  {value}")


def width() -> int:
    """Columns that a line may take."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else NARROW


def ramp() -> str:
    """Characters of rising height that standard output can show."""
    try:
        drawing.BLOCKS.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return drawing.ASCII
    return drawing.BLOCKS


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = (), bold: Collection[int] = ()
) -> None:
    """A table; the columns in ``right`` are aligned right, and the rows with the numbers ``bold`` stand out."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        found.add_column(column, justify="right" if column in right else "left", no_wrap=column == columns[0])
    for number, row in enumerate(rows):
        found.add_row(*map(Text, row), style="bold" if number in bold else None)
    console = Console(width=width(), height=len(found.rows))  # without a height, a dumb terminal is 80 columns wide
    with console.capture() as capture:
        console.print(found)
    for line in capture.get().splitlines():
        say(line.rstrip())


@contextmanager
def bars(**labels: str) -> Iterator[Report]:
    """A progress bar for each stage on standard error, when that is a terminal; they are gone at the end."""
    if not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich import progress
    from rich.console import Console

    shown = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    tasks: dict[str, progress.TaskID] = {}

    def report(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = shown.add_task(labels[stage], total=total)
        shown.update(tasks[stage], completed=done, total=total)

    with shown:
        yield report


def clean(text: str) -> str:
    """Text of an input as a terminal may see it: whatever is not printable is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def points(value: float | None, missing: str = "unknown") -> str:
    """A score with its hundredths."""
    return missing if value is None else f"{value:.2f}"


def whole(value: int | None) -> str:
    """A count, or "unknown"."""
    return "unknown" if value is None else f"{value:,}"


def moment(time: datetime | None) -> str:
    """A time in UTC to the minute, or a dash."""
    return "-" if time is None else f"{time.astimezone(UTC):%Y-%m-%d %H:%M}Z"


def size(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
