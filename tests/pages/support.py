"""Published versions with what the gates said of them, and a browser of a few lines."""

from __future__ import annotations

import html
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode

import snapshots
from serving.support import Answer, Row, Server, rows

from kserve.serving.keys import Key, Keys
from kserve.settings import Settings
from kserve.snapshots.build import Options
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.cycle import Request, publish
from kserve.snapshots.report import Report


class Told:
    """Nobody listens."""

    def progress(self, stage: str, done: int, total: int) -> None: ...
    def step(self, name: str, result: str) -> None: ...
    def report(self, report: Report) -> None: ...
    def warn(self, text: str) -> None: ...


def publish_day(data: Path, day_rows: list[Row], age: timedelta) -> str:
    """A whole publish cycle of these rows, scored so long ago; the version."""
    source = snapshots.write_parquet(data.with_name(f"day-{age.total_seconds():.0f}.parquet"), day_rows)
    options = Options(scored_at=datetime.now(UTC).replace(microsecond=0) - age)
    settings = Settings(data=data, require_manifest=False)
    first = Catalog(data).live() is None
    return publish(Catalog(data), settings, Request(source=source, options=options, first=first), Told()).version


def publish_days(data: Path) -> list[str]:
    """Three nights; the versions, the oldest first."""
    data.mkdir(parents=True)
    return [publish_day(data, rows(0.1 * day), timedelta(hours=40 - 15 * day)) for day in range(3)]


class Visitor:
    """Sends forms of pages back as a browser does: with their hidden fields and the cookie."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.cookie = ""
        self.headers: dict[str, str] = {}

    def get(self, path: str) -> Answer:
        return self._kept(self.server.get(path, **self._sent()))

    def post(self, path: str, fields: dict[str, str], **headers: str) -> Answer:
        sent = {"Content-Type": "application/x-www-form-urlencoded"} | self._sent() | headers
        return self._kept(self.server.ask("POST", path, urlencode(fields).encode(), **sent))

    def send(self, path: str, to: str | None = None, **fields: str) -> Answer:
        """Load the page with a form, fill it in, and send it."""
        hidden = hidden_fields(self.get(path))
        return self.post(to or path.partition("?")[0], hidden | fields)

    def sign_in(self, key: str) -> Answer:
        return self.send("/console/sign-in", key=key)

    def _sent(self) -> dict[str, str]:
        return self.headers | ({"Cookie": self.cookie} if self.cookie else {})

    def _kept(self, answer: Answer) -> Answer:
        if "set-cookie" in answer.headers:
            self.cookie = answer.headers["set-cookie"].partition(";")[0]
        return answer


def hidden_fields(answer: Answer) -> dict[str, str]:
    """Of the last form of a page: the others are those of every page."""
    form = answer.body.decode().rpartition("<form")[2]
    found = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', form)
    return {name: html.unescape(value) for name, value in found}


def make_key(data: Path, *scopes: str) -> tuple[Key, str]:
    return Keys(data).create("maria", scopes or ("console",))
