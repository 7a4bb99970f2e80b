"""The server as commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from kserve.cli import options, output
from kserve.cli.options import setting
from kserve.errors import SettingError
from kserve.settings import load
from kserve.snapshots.durable import storage


def serve(
    host: options.Host = None,
    port: options.Port = None,
    workers: Annotated[int | None, setting("workers")] = None,
    admin_host: Annotated[str | None, setting("admin_host")] = None,
    admin_port: Annotated[int | None, setting("admin_port")] = None,
    open: Annotated[bool | None, setting("open", "--open/--no-open")] = None,
    compiled: Annotated[bool | None, setting("compiled", "--compiled/--no-compiled")] = None,
    trusted_proxies: Annotated[list[str] | None, setting("trusted_proxies")] = None,
    redis: Annotated[str | None, setting("redis")] = None,
    redis_cluster: Annotated[bool | None, setting("redis_cluster", "--redis-cluster/--no-redis-cluster")] = None,
    redis_timeout: Annotated[float | None, setting("redis_timeout")] = None,
    hosts: Annotated[int | None, setting("hosts")] = None,
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
    max_connections: Annotated[int | None, setting("max_connections")] = None,
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

    Scores are served by worker processes; metrics, status page and console by one of their own, on the admin port.
    Runs in the foreground until SIGTERM or Ctrl-C, then finishes what it has begun; SIGHUP, or `kserve reload`, makes
    it take new settings and new code without losing a request. Logs go to standard error. Every flag is a setting too:
    KSERVE_PORT in the environment, port in kserve.toml. With --json it prints its addresses once every worker listens.

    Example:

      $ kserve serve --port 8080
    """
    flags = {name: value for name, value in locals().items() if name != "as_json"}  # named as their settings
    settings = load(**flags)
    from kserve.serving import supervisor

    supervisor.run(settings, output.emit if as_json else None)


def reload(data: options.Data = None, as_json: options.Json = False) -> None:
    """Let the servers of a data directory take new settings and new code, without losing a request.

    For those that run here, under this user. Each first tries whether it could start now, and goes on as it is if not;
    else new workers take over, and the old ones finish what they have. Addresses and ports stay. Returns when the old
    ones are gone. The same as SIGHUP to the process that `kserve serve` names.

    Example:

      $ kserve reload
    """
    settings = load(data=data)
    from kserve.serving import reloading

    with storage(f"looking for servers of {settings.data}"):
        found = reloading.arbiters(settings.data)
    if not found:
        raise SettingError(_nobody(settings.data))
    reloads = [reloading.Reload(settings.data, pid) for pid in found]
    for one in reloads:
        one.wait(settings.drain_timeout)
    if as_json:
        output.emit({"reloaded": [{"pid": one.pid, "children": sorted(one.children())} for one in reloads]})
    else:
        for one in reloads:
            output.say(f"server {one.pid} is reloaded")


def _nobody(data: Path) -> str:
    """Why there is nothing to reload."""
    from kserve.serving import reloading

    alone = reloading.alone(data)
    if not alone:
        return f"no server of {data} runs here under this user: name its directory with --data"
    return (
        f"process {alone[0]} serves {data} alone, as `kserve demo --serve` does, and cannot be reloaded: end it, and"
        f" start `kserve serve --data {data}`"
    )
