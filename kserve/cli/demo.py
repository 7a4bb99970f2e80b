"""The whole way in one command: profiles, two daily snapshots, a server, and questions to it with their answers."""

from __future__ import annotations

import json
import shutil
import socket
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kserve.cli import building, options, output
from kserve.errors import SettingError
from kserve.settings import Settings, load
from kserve.snapshots.catalog import Catalog

if TYPE_CHECKING:
    from kserve.cli.samples import Sample
    from kserve.synth import Plan

DAYS = (1, 2)


def demo(
    profiles: Annotated[int, typer.Option("--profiles", metavar="N", help="Profiles of each day.")] = 1_000_000,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Another seed, another population.")] = 1,
    serve: Annotated[bool, typer.Option("--serve", help="Go on serving until SIGTERM or Ctrl-C.")] = False,
    host: options.Host = None,
    port: options.Port = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Show everything at once, on synthetic profiles: two daily snapshots, and questions with their real answers.

    For the first look, and to have something to develop against. It needs nothing else: no Redis, no root, no network.
    What an earlier run made in DATA is used again. A DATA with real snapshots in it is refused.

    Example:

      $ kserve demo --serve
    """
    settings = load(data=data, host=host, port=port)
    if serve:
        _check_address(settings)
    prepared = _Demo(Catalog(settings.data), quiet=as_json)
    versions = [prepared.publish(plan) for plan in _plans(profiles, seed)]
    prepared.announce(versions[-1])
    _serve(settings, versions, stay=serve, as_json=as_json)


def _plans(profiles: int, seed: int) -> list[Plan]:
    from kserve.synth import Plan

    return [Plan(profiles, day, seed) for day in DAYS]


def _check_address(settings: Settings) -> None:
    """Now, and not only after a minute of work. Raises SettingError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        socket.create_server((settings.host, settings.port), family=family).close()
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise SettingError(
            f"cannot listen on {settings.host}, port {settings.port}: {reason}; choose another with --port"
        ) from None


class _Demo:
    """Makes, builds and publishes what is not there yet."""

    def __init__(self, catalog: Catalog, quiet: bool) -> None:
        from kserve.synth import scored_at

        self.catalog = catalog
        self.steps = building.Steps(quiet)
        self.moments = [scored_at(day) for day in DAYS]
        self._check_data()

    def _check_data(self) -> None:
        """Synthetic scores must not be announced where real ones are. Raises SettingError."""
        for version in self.catalog.versions():
            if version.scored_at not in self.moments:
                raise SettingError(
                    f"{self.catalog.data} has {version.name}, which no demo made: give the demo a --data of its own"
                )

    def publish(self, plan: Plan) -> str:
        """The published version of a day of the demo."""
        folder = self._input(plan)
        version = self._published(folder)
        if version is None:
            version = self._build(folder)
            self._publish(version)
        else:
            self.steps.done("snapshot", f"{version} is published already")
        return version

    def announce(self, version: str) -> None:
        """Another demo in the same folder may have announced something else since."""
        if self.catalog.announced() != version:
            self._publish(version)

    def _input(self, plan: Plan) -> Path:
        from kserve.synth import write

        folder = self.catalog.data / "demo-input" / f"{plan.profiles}-profiles-seed-{plan.seed}" / f"day-{plan.day}"
        if _made_by(folder, plan):
            self.steps.done("profiles", f"{folder} is there already")
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        with output.bars(profiles=f"making profiles of day {plan.day}") as report:
            write(folder, plan, partial(report, "profiles"))
        self.steps.done("profiles", f"{plan.profiles:,} of day {plan.day} in {folder}")
        return folder

    def _published(self, folder: Path) -> str | None:
        """The published version that was built from this input."""
        made = _manifest(folder)
        scored_at = datetime.fromisoformat(made["scored_at"])
        digests = [part["sha256"] for part in made["parts"]]
        for version in self.catalog.versions():
            if version.state != "candidate" and version.scored_at == scored_at:
                parts = self.catalog.manifest(version.name)["parts"]
                if [part["sha256"] for part in parts] == digests:
                    return version.name
        return None

    def _build(self, folder: Path) -> str:
        from kserve.snapshots.build import Options

        told = Options(topics=folder / "topics.csv", topic_edges=folder / "topic_edges.csv")
        return building.build_candidate(self.catalog, folder, told).version

    def _publish(self, version: str) -> None:
        with output.bars(verify="verifying bytes") as report:
            snapshot = self.catalog.publish(version, partial(report, "verify"))
        self.steps.done("snapshot", f"{version} is published: {snapshot.profiles:,} profiles")


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "_manifest.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _made_by(folder: Path, plan: Plan) -> bool:
    """Whether a whole input of this plan lies there; its manifest says from what it was made."""
    generator = _manifest(folder).get("generator", {})
    return bool(asdict(plan).items() <= generator.items())


def _serve(settings: Settings, versions: list[str], *, stay: bool, as_json: bool) -> None:
    """Ask a running server, in it and over HTTP, and show what it answers."""
    from kserve.cli import samples
    from kserve.serving import app

    shown = f"http://{settings.host}:{settings.port}"

    def session(address: str) -> bool:
        with Catalog(settings.data).open() as snapshot:
            picks = samples.choose(snapshot)
        asked = samples.over_http(address, address if stay else shown, picks)
        lines = samples.in_process(settings.data, picks)
        if as_json:
            output.emit(_document(address if stay else None, versions, asked, lines))
        else:
            _print(asked, lines)
            output.say()
            output.say(
                f"serving {address} until Ctrl-C" if stay else f"to serve it: kserve serve --data {settings.data}"
            )
        return stay

    app.run(settings if stay else settings.model_copy(update={"port": 0}), session)


def _document(address: str | None, versions: list[str], asked: list[Sample], lines: list[Sample]) -> dict[str, Any]:
    return {
        "address": address,
        "versions": versions,
        "curl": [{"command": sample.asked, "answer": json.loads(sample.answer)} for sample in asked],
        "python": [{"code": sample.asked, "result": sample.answer or None} for sample in lines],
    }


def _print(asked: list[Sample], lines: list[Sample]) -> None:
    output.say("\nOver HTTP:")
    for sample in asked:
        output.say(f"\n$ {sample.asked}\n{sample.answer}")
    output.say("\nIn process, in Python:\n")
    for sample in lines:
        output.say(f">>> {sample.asked}" + (f"\n{sample.answer}" if sample.answer else ""))
