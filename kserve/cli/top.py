"""What the servers of this host do right now."""

from __future__ import annotations

import select
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from kserve.cli import options, output

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kserve.serving.samples import Latency, Limits, Part, Rates, Sample, Watcher, Worker

REMEMBERED = 60
"""Samples that the line of past rates shows."""

QUIT = "q"
_NOT_SAID = "-"


class Section(NamedTuple):
    """A table: its columns, of which all but the first are figures unless ``left`` names them."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    left: tuple[str, ...] = ()

    @property
    def right(self) -> tuple[str, ...]:
        """Columns of figures."""
        return tuple(column for column in self.columns[1:] if column not in self.left)


def top(
    interval: Annotated[float, typer.Option("--interval", min=0.1, help="Seconds of a sample.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one sample, and end.")] = False,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Show what the servers of this host do right now: rates, latencies, limits and what is shed, by worker.

    It reads what they count in shared memory, so it needs no key and no port, costs them nothing, and works under
    overload. On a terminal it goes on until q; with --once, --json or another output it shows one sample.

    Example:

      $ kserve top --once
    """
    from kserve.serving.samples import Watcher, sample

    watcher = Watcher(options.existing(data).data)
    if sys.stdout.isatty() and not (once or as_json):
        _watch(watcher, interval)
        return
    before = watcher.read()
    time.sleep(interval)
    found = sample(before, watcher.read())
    if as_json:
        import msgspec

        output.emit(msgspec.to_builtins(found))
    else:
        _print(found)


def _print(found: Sample) -> None:
    for line in headlines(found):
        output.say(line)
    for section in sections(found):
        output.say()
        output.table(section.columns, section.rows, right=section.right)


def headlines(found: Sample) -> list[str]:
    """What is said before the tables."""
    if not found.workers:
        return ["no process of this host serves from here"]
    rates, limits = found.rates, found.limits
    ways = f"{rates.compiled / rates.answered:.0%} compiled" if rates.answered else "nothing asked"
    refusals = f"limited {_rate(rates.limited)}/s, shed {_rate(rates.shed)}/s, no key {_rate(rates.unauthorized)}/s"
    serving = sum(worker.role == "worker" for worker in found.workers)
    wanted = "" if found.workers_wanted is None else f" of {found.workers_wanted}"
    noun = "worker" if (serving if found.workers_wanted is None else found.workers_wanted) == 1 else "workers"
    return [
        f"{found.announced or 'nothing announced'}, {serving}{wanted} {noun}",
        f"{_rate(rates.answered)} requests/s ({ways}), {_latencies(rates.latency)}",
        f"before that they waited for their event loop: {_latencies(found.loop_delay)}",
        f"{refusals}; failed {_rate(rates.failed)}/s",
        _limits(limits),
    ]


def _limits(limits: Limits) -> str:
    redis = {None: None, True: "Redis answers", False: "REDIS DOES NOT ANSWER"}[limits.redis_up]
    counts = ((limits.hosts, "hosts"), (limits.buckets, "buckets"), (limits.leased_tokens, "leased tokens"))
    known = [limits.mode, redis, *(_of(count, what) for count, what in counts if count is not None)]
    return f"limits: {', '.join(text for text in known if text) or 'nobody says'}"


def _of(count: int, what: str) -> str:
    return f"{count:,} {what if count != 1 else what[:-1]}"


def sections(found: Sample) -> Iterator[Section]:
    """The tables."""
    if not found.workers:
        return
    latencies = ("p50", "p99", "p99.9")
    columns = ("process", "role", "version", "req/s", *latencies, "limited/s", "shed/s", "failed/s", "conn", "waiting")
    left = ("role", "version")
    yield Section((*columns, "delay", "kept", "cpu", "memory"), [_of_worker(one) for one in found.workers], left)
    if found.routes:
        yield Section(("route", "req/s", *latencies), [_of_part(part, False) for part in found.routes])
    if found.tiers:
        yield Section(("tier", "req/s", *latencies, "limited/s"), [_of_part(part, True) for part in found.tiers])


def _of_worker(one: Worker) -> tuple[str, ...]:
    rates = one.rates
    return (
        f"{one.pid}{' drains' if one.draining else ''}",
        one.role,
        one.version or _NOT_SAID,
        _rate(rates.answered),
        *_quantiles(rates.latency),
        _rate(rates.limited),
        _rate(rates.shed),
        _rate(rates.failed),
        _shown(one.connections, "{:,}"),
        _shown(one.in_progress, "{:,}"),
        _NOT_SAID if one.loop_delay is None else span(one.loop_delay),
        _shown(one.kept, "{:.0%}"),
        _shown(one.cpu, "{:.0%}"),
        _NOT_SAID if one.memory_bytes is None else output.size(one.memory_bytes),
    )


def _of_part(part: Part, limited: bool) -> tuple[str, ...]:
    last = (_rate(part.limited or 0.0),) if limited else ()
    return output.clean(part.name), _rate(part.answered), *_quantiles(part.latency), *last


def _shown(value: float | None, form: str) -> str:
    return _NOT_SAID if value is None else form.format(value)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:.1f}"


def _quantiles(latency: Latency | None) -> tuple[str, str, str]:
    if latency is None:
        return (_NOT_SAID,) * 3
    return span(latency.p50), span(latency.p99), span(latency.p999)


def _latencies(latency: Latency | None) -> str:
    p50, p99, p999 = _quantiles(latency)
    return f"p50 {p50}, p99 {p99}, p99.9 {p999}"


def span(seconds: float) -> str:
    """A short time, with three digits."""
    for factor, unit in ((1e6, "µs"), (1e3, "ms")):
        if seconds * factor < 999.5:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def _watch(watcher: Watcher, interval: float) -> None:
    """Until q or Ctrl-C."""
    from rich.live import Live

    from kserve.serving.samples import sample

    past: deque[Rates] = deque(maxlen=REMEMBERED)
    before = watcher.read()
    with _keys() as pressed, Live(screen=True, auto_refresh=False) as live:
        wait = min(interval, 0.3)  # so that something is seen at once
        while pressed(wait) != QUIT:
            after = watcher.read()
            found = sample(before, after)
            past.append(found.rates)
            live.update(_screen(found, past), refresh=True)
            before, wait = after, interval


def _screen(found: Sample, past: Iterable[Rates]) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [Text(line) for line in headlines(found)]
    parts.append(Text(drawn([rates.answered for rates in past], output.ramp())))
    for section in sections(found):
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for column in section.columns:
            table.add_column(column, justify="right" if column in section.right else "left", no_wrap=True)
        for row in section.rows:
            table.add_row(*map(Text, row))
        parts += [Text(), table]
    return Group(*parts, Text(), Text("q to quit", style="dim"))


def drawn(values: Sequence[float], ramp: str) -> str:
    """Past values as a line of characters, the highest of them at full height."""
    highest = max(values, default=0.0) or 1.0
    return "".join(ramp[round(value / highest * (len(ramp) - 1))] for value in values)


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """A function that waits so many seconds for a key, and says which; nothing is echoed meanwhile."""
    import termios
    import tty

    if not sys.stdin.isatty():
        yield _slept
        return

    def pressed(seconds: float) -> str:
        try:
            return sys.stdin.read(1) if select.select([sys.stdin], [], [], seconds)[0] else ""
        except KeyboardInterrupt:
            return QUIT

    kept = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield pressed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, kept)


def _slept(seconds: float) -> str:
    """Without a keyboard no key is pressed."""
    time.sleep(seconds)
    return ""
