"""Logs: one JSON object a line on standard error, or coloured text when that is a terminal."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_KEYS = re.compile(r"(ks_live_[A-Za-z0-9]{12}_)\w+|([?&]key=)[^\s&\"'\\]+")


def configure() -> None:
    """Send structlog's events and the standard library's warnings to standard error, in one form."""
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_pid,
    ]
    if sys.stderr.isatty():
        last: list[Processor] = [_without_keys(structlog.dev.ConsoleRenderer())]
    else:
        last = [structlog.processors.format_exc_info, _without_keys(_to_json)]
    structlog.configure(
        processors=[*shared, *last],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("kserve").setLevel(logging.INFO)


def _add_pid(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Whose line it is: all processes of a server write to one place."""
    event.setdefault("pid", os.getpid())
    return event


def _without_keys(render: Callable[[WrappedLogger, str, EventDict], str]) -> Processor:
    """Whatever is logged, and by whichever library: the id of a key may be known, its secret may not."""

    def rendered(logger: WrappedLogger, method: str, event: EventDict) -> str:
        return _KEYS.sub(r"\1\2***", render(logger, method, event))

    return rendered


def _to_json(logger: WrappedLogger, method: str, event: EventDict) -> str:
    return msgspec.json.encode(event, enc_hook=repr).decode()
