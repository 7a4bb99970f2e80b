"""The command ``kserve``: what it is made of, and how every command ends."""

from __future__ import annotations

import inspect
import io
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

import kserve
from kserve.cli import (
    acts,
    apikeys,
    building,
    comparing,
    demo,
    eligibility,
    incidents,
    limits,
    output,
    pages,
    publishing,
    reading,
    server,
    status,
    top,
    webhooks,
)
from kserve.errors import KserveError, StorageError
from kserve.namesake import refuse_namesake

INTERRUPTED = 130
"""Exit code after Ctrl-C, as of a process that SIGINT ended."""

HELP = """Influence scores from verified, memory-mapped snapshots.

A pipeline's output becomes a candidate (build), passes the gates and is announced (publish), and is then read by
servers and by other processes; what turns out bad is rolled back. Every command takes --json and --help.

Everything at once, on synthetic profiles:

  $ kserve demo --serve
"""


def _reflowed(text: str) -> str:
    """Help as Typer wants it, a line a paragraph; examples keep their lines."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(text if text.startswith(" ") else " ".join(text.split()) for text in paragraphs)


app = typer.Typer(
    help=_reflowed(HELP),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        output.say(f"kserve {kserve.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print kserve's own version.")
    ] = False,
) -> None:
    refuse_namesake()


for _command in (
    building.manifest,
    building.build,
    publishing.check,
    publishing.publish,
    comparing.diff,
    status.status,
    reading.history,
    acts.rollback,
    acts.pin,
    acts.unpin,
    acts.prune,
    reading.show,
    reading.get,
    eligibility.eligible,
    server.serve,
    server.reload,
    top.top,
    pages.status_page,
    building.synth,
    demo.demo,
):
    app.command(help=_reflowed(_command.__doc__ or ""))(_command)


def _add_group(name: str, group: typer.Typer) -> None:
    """A group of commands, and the groups in it."""
    app.add_typer(group, name=name)
    _reflow(group)


def _reflow(group: typer.Typer) -> None:
    for command in group.registered_commands:
        command.help = _reflowed(getattr(command.callback, "__doc__", "") or "")
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            _reflow(inner.typer_instance)


for _name, _group in (
    ("quarantine", acts.quarantine_app),
    ("incident", incidents.incident_app),
    ("webhooks", webhooks.webhooks_app),
    ("keys", apikeys.keys_app),
    ("limits", limits.limits_app),
):
    _add_group(_name, _group)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its code; the codes are those of :mod:`kserve.errors`, and 2 for wrong usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the locale cannot show is no reason to fail
    try:
        code = _run(words)
    except typer.Exit as end:  # nobody reads what we print
        code = end.exit_code
    sys.exit(code)


def _run(words: list[str]) -> int:
    try:
        return app(words, prog_name="kserve", standalone_mode=False) or 0
    except typer.TyperException as error:
        return _refuse_usage(error, words)
    except KserveError as error:
        return _fail(error, words)
    except OSError as error:
        return _fail(StorageError(str(error)), words)
    except KeyboardInterrupt:
        return INTERRUPTED


def _refuse_usage(error: typer.TyperException, words: list[str]) -> int:
    context = getattr(error, "ctx", None)
    message = error.format_message()
    if message:  # without one, Typer has printed the help
        remedy = f"see `{context.command_path if context else 'kserve'} --help`"
        _report({"slug": "usage", "message": message, "exit_code": error.exit_code}, f"{message} ({remedy})", words)
    return error.exit_code


def _fail(error: KserveError, words: list[str]) -> int:
    _report(output.error_document(error), str(error), words)
    return error.exit_code


def _report(document: dict[str, Any], line: str, words: list[str]) -> None:
    """A line on standard error, and an object for who asked for JSON; looked for here, as parsing may have failed."""
    output.warn(line)
    if "--json" in words:
        output.emit({"error": document})
