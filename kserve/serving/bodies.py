"""Reading what clients send: profile ids, query numbers and JSON bodies, with an error that says what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Sized
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
from aiohttp import web

from kserve.serving.problems import MAX_ECHO, Problem
from kserve.settings import Settings

T = TypeVar("T")

MAX_FIELDS = 32
"""Fields of a form."""

JSON = "application/json"
BINARY = "application/octet-stream"

ID_BYTES = 8
"""Of a profile id in a binary body."""

_CUT_SHORT = "the client went away before its body was whole"


def parse_id(text: str) -> int | None:
    """The profile id that 1 to 20 digits stand for, without sign or leading zeros; None for anything else."""
    if not (text.isascii() and text.isdigit()) or len(text) > 20 or (text[0] == "0" and text != "0"):
        return None
    value = int(text)
    return value if value < 2**64 else None


def path_id(text: str) -> int:
    """The profile id of a path. Raises Problem ``invalid-id``."""
    value = parse_id(text)
    if value is None:
        raise Problem(
            "invalid-id", f"{shown(text)!r} is not a profile id: 1 to 20 digits, below 2^64, no leading zeros"
        )
    return value


def why_invalid(item: Any) -> str:
    """What is wrong with an item of a list of ids, and the remedy."""
    if isinstance(item, str):
        return "not a profile id: 1 to 20 digits, below 2^64, no leading zeros"
    return "ids are strings: write the digits in quotes"


def shown(item: Any) -> str:
    """What a client sent as an answer repeats it: cut when long, and a value that is no string as JSON."""
    text = item if isinstance(item, str) else msgspec.json.encode(item).decode()
    return text if len(text) <= MAX_ECHO else f"{text[:MAX_ECHO]}..."


def query_number(request: web.Request, name: str, default: int, low: int, high: int) -> int:
    """A whole number of the query. Raises Problem ``bad-query``."""
    text = request.query.get(name)
    if text is None:
        return default
    value = parse_id(text)
    if value is None or not low <= value <= high:
        raise Problem("bad-query", f"{name}={shown(text)} is not a whole number of {low} to {high}")
    return value


async def decode(request: web.Request, settings: Settings, decoder: msgspec.json.Decoder[T]) -> T:
    """The JSON body of a request. Raises Problem for a body of another type, too large, too slow, or misshaped."""
    return parse(await content(request, settings, JSON), decoder)


async def content(request: web.Request, settings: Settings, *taken: str) -> bytes:
    """The bytes of a body of one of these types. Raises Problem for one of another type, too large, or too slow."""
    _check_headers(request, settings.body_limit, taken)
    return await _read(request, settings)


def parse(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """What a JSON body says. Raises Problem for one that is misshaped."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise Problem("bad-body", str(error)) from None
    except UnicodeDecodeError as error:
        raise Problem("bad-json", f"not UTF-8: {error.reason} in a string") from None
    except RecursionError:
        raise Problem("bad-json", "nested too deeply") from None
    except msgspec.DecodeError as error:
        position = "" if "(byte " in str(error) else f" (byte {len(body)})"
        raise Problem("bad-json", f"{error}{position}") from None


def kind(request: web.Request) -> str:
    """The media type that a request says its body has, empty without one: aiohttp takes what says nothing for bytes."""
    found = request.content_type
    return found if found in request.headers.get("Content-Type", "").lower() else ""


def answered_as(request: web.Request) -> str:
    """JSON or BINARY: the type of the request's body, unless ``Accept`` names only the other one."""
    accepted = request.headers.get("Accept")
    if accepted is None or "*/*" in accepted:
        return kind(request)
    named = {part.partition(";")[0].strip().lower() for part in accepted.split(",")} & {JSON, BINARY}
    return named.pop() if len(named) == 1 else kind(request)


def cut_short(body: bytes) -> Problem:
    """What is wrong with a binary body that is no whole number of ids."""
    return Problem("bad-body", f"{len(body)} bytes are no whole number of ids, which have {ID_BYTES} bytes each")


async def form(request: web.Request, settings: Settings) -> dict[str, str]:
    """The fields of a form that a page of ours was sent back with. Raises Problem, as :func:`decode` does."""
    if request.content_type != "application/x-www-form-urlencoded":
        raise Problem("unsupported-media-type", "send the form as application/x-www-form-urlencoded")
    if (request.content_length or 0) > settings.body_limit:
        raise _too_large(settings.body_limit)
    body = await _read(request, settings)
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ValueError:
        raise Problem("malformed-request", "the form cannot be read") from None


def check_count(ids: Sized, limit: int) -> None:
    """Raises Problem ``too-many-ids``."""
    if len(ids) > limit:
        raise Problem("too-many-ids", f"{len(ids)} ids in one request, at most {limit}; split them")


def _check_headers(request: web.Request, limit: int, taken: tuple[str, ...]) -> None:
    coding = request.headers.get("Content-Encoding", "identity").lower()
    if coding != "identity":
        raise Problem("unsupported-media-type", f"Content-Encoding {shown(coding)} is not taken; send the body plainly")
    if kind(request) not in taken or (request.charset or "utf-8").lower() != "utf-8":
        found = shown(request.headers.get("Content-Type", "none"))
        wanted = " or ".join(taken).replace(JSON, f"{JSON} in UTF-8")
        raise Problem("unsupported-media-type", f"Content-Type is {found}; send {wanted}")
    if (request.content_length or 0) > limit:
        raise _too_large(limit)


async def _read(request: web.Request, settings: Settings) -> bytes:
    try:
        if request.content.is_eof():  # it is all here: nothing can be late
            return await request.read()
        async with asyncio.timeout(settings.body_timeout):
            return await request.read()
    except TimeoutError:
        seconds = settings.body_timeout
        raise Problem("slow-body", f"the body was not whole after {seconds:g} s", close=True) from None
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(settings.body_limit) from None
    except ConnectionError:
        raise Problem("malformed-request", _CUT_SHORT, close=True) from None
    except web.RequestPayloadError as error:
        raise Problem("malformed-request", str(error).partition("\n")[0], close=True) from None


def _too_large(limit: int) -> Problem:
    return Problem("body-too-large", f"a body may have at most {limit} bytes; split the request", close=True)
