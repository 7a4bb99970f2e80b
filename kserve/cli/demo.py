"""The whole way in one command: profiles, two daily snapshots, a server, and questions to it with their answers."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kserve.cli import options, output
from kserve.cli.options import setting
from kserve.errors import SettingError
from kserve.settings import Settings, load
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.durable import storage, write_file

if TYPE_CHECKING:
    from kserve.cli.samples import Sample

KEY_FILE = "demo-key"
"""In the data directory: the key that the questions are asked with."""

KEY_SCOPES = ("score:read", "batch")


def demo(
    profiles: Annotated[int, typer.Option("--profiles", metavar="N", help="Profiles of each day.")] = 1_000_000,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Another seed, another population.")] = 1,
    serve: Annotated[bool, typer.Option("--serve", help="Go on serving until SIGTERM or Ctrl-C.")] = False,
    host: options.Host = None,
    port: options.Port = None,
    admin_port: Annotated[int | None, setting("admin_port")] = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Show everything at once, on synthetic profiles: two daily snapshots, and questions with their real answers.

    For the first look, and to have something to develop against. It needs nothing else: no Redis, no root, no network.
    With --serve it is one process without workers, which `kserve reload` cannot reload: `kserve serve` is the real one.
    It makes a key to ask with, keeps it in DATA/demo-key, and shows it. What an earlier run made in DATA is used again.
    A DATA with real snapshots in it is refused.

    Example:

      $ kserve demo --serve
    """
    settings = load(data=data, host=host, port=port, admin_port=admin_port)
    if serve:
        _check_address(settings.host, settings.port, "port")
        _check_address(settings.admin_host, settings.admin_port, "admin-port")
    from kserve.cli.nights import Nights

    versions = Nights(settings, profiles, seed, quiet=as_json).published()
    _serve(settings, versions, _key(settings.data), stay=serve, as_json=as_json)


def _check_address(host: str, port: int, flag: str) -> None:
    """Now, and not only after a minute of work. Raises SettingError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise SettingError(f"cannot listen on {host}, port {port}: {reason}; choose another with --{flag}") from None


def _key(data: Path) -> str:
    """The key of an earlier run if it is still live, else a new one. Raises StorageError."""
    from kserve.cli.nights import BY
    from kserve.serving.keys import Keys

    keys, file = Keys(data), data / KEY_FILE
    with suppress(OSError, ValueError):
        text = file.read_text("ascii").strip()
        if all(keys.check(text, scope) for scope in KEY_SCOPES):
            return text
    _, text = keys.create(BY, KEY_SCOPES)
    with storage(f"writing {file}"):
        file.unlink(missing_ok=True)
        write_file(file, f"{text}\n".encode(), 0o600)
    return text


def _serve(settings: Settings, versions: list[str], key: str, *, stay: bool, as_json: bool) -> None:
    """Ask a running server, in it and over HTTP, and show what it answers."""
    from kserve.cli import samples
    from kserve.serving import app

    shown = f"http://{settings.host}:{settings.port}"

    def session(address: str) -> bool:
        with Catalog(settings.data).open() as snapshot:
            picks = samples.choose(snapshot)
        asked = samples.over_http(address, address if stay else shown, picks, key)
        lines = samples.in_process(settings.data, picks)
        if as_json:
            output.emit(_document(address if stay else None, versions, key, asked, lines))
        else:
            output.say(f"\nThe key, also in {settings.data / KEY_FILE}: {key}")
            _print(asked, lines)
            output.say()
            output.say(
                f"serving {address} until Ctrl-C" if stay else f"to serve it: kserve serve --data {settings.data}"
            )
        return stay

    app.run(settings.model_copy(update=_any_ports(settings, stay)), session)


def _any_ports(settings: Settings, stay: bool) -> dict[str, int]:
    """Where nobody needs to know them; with any port for scores, any for the office too, unless one was asked for."""
    if not stay:
        return {"port": 0, "admin_port": 0}
    return {} if settings.port or "admin_port" in settings.model_fields_set else {"admin_port": 0}


def _document(
    address: str | None, versions: list[str], key: str, asked: list[Sample], lines: list[Sample]
) -> dict[str, Any]:
    return {
        "address": address,
        "versions": versions,
        "key": key,
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
