"""The status page as a command of its own."""

from __future__ import annotations

import os
from typing import Annotated

from kserve.cli import options, output
from kserve.cli.options import setting
from kserve.settings import load


def status_page(
    host: options.Host = None,
    port: options.Port = None,
    public_url: Annotated[str | None, setting("public_url")] = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Serve the status page alone, on a port of its own.

    It needs no snapshot and no server: run it beside `kserve serve`, on the same host, so that people see how things
    are when scores are down. Runs in the foreground until SIGTERM or Ctrl-C. With --json it prints its address once it
    listens.

    Example:

      $ kserve status-page --port 8082 --public-url https://status.example.com
    """
    settings = load(data=data, host=host, port=port, public_url=public_url)
    from kserve.serving import app

    def tell(address: str) -> bool:
        output.emit({"address": address, "pid": os.getpid()})
        return True

    app.run_status(settings, tell if as_json else None)
