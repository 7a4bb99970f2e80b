"""The server as a command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from kserve.cli import options, output
from kserve.cli.options import setting
from kserve.settings import load


def serve(
    host: options.Host = None,
    port: options.Port = None,
    verify_at_open: Annotated[Literal["structure", "full"] | None, setting("verify_at_open")] = None,
    warm: Annotated[bool | None, setting("warm", "--warm/--no-warm")] = None,
    sentinel: Annotated[bool | None, setting("sentinel", "--sentinel/--no-sentinel")] = None,
    trusted_keys: Annotated[Path | None, setting("trusted_keys")] = None,
    signing_key: Annotated[Path | None, setting("signing_key")] = None,
    console: Annotated[bool | None, setting("console", "--console/--no-console")] = None,
    public_url: Annotated[str | None, setting("public_url")] = None,
    webhook_private: Annotated[
        bool | None, setting("webhook_private", "--webhook-private/--no-webhook-private")
    ] = None,
    batch_limit: Annotated[int | None, setting("batch_limit")] = None,
    body_limit: Annotated[int | None, setting("body_limit")] = None,
    header_timeout: Annotated[float | None, setting("header_timeout")] = None,
    body_timeout: Annotated[float | None, setting("body_timeout")] = None,
    send_timeout: Annotated[float | None, setting("send_timeout")] = None,
    keepalive_timeout: Annotated[float | None, setting("keepalive_timeout")] = None,
    drain_timeout: Annotated[float | None, setting("drain_timeout")] = None,
    cache_seconds: Annotated[int | None, setting("cache_seconds")] = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Serve the announced version over HTTP, and every one that is announced after it.

    Runs in the foreground until SIGTERM or Ctrl-C, then finishes what it has begun. Logs go to standard error. Every
    flag is a setting too: KSERVE_PORT in the environment, port in kserve.toml. With --json it prints its address once
    it listens.

    Example:

      $ kserve serve --port 8080
    """
    flags = {name: value for name, value in locals().items() if name != "as_json"}  # named as their settings
    settings = load(**flags)
    from kserve.serving import app

    def tell(address: str) -> bool:
        output.emit({"address": address, "pid": os.getpid()})
        return True

    app.run(settings, tell if as_json else None)
