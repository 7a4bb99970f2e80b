"""One request: its headers, its signature, and partners that answer badly."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from notices.support import Clock, Partner, python
from standardwebhooks import Webhook
from waiting import PATIENCE

from kserve.notices import sender as module
from kserve.notices.deliveries import Outcome
from kserve.notices.sender import Sender, headers

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
BODY = json.dumps({"type": "webhook.test", "name": "Åsa"}, ensure_ascii=False)


async def send(url: str, private: bool = True) -> Outcome:
    async with Sender(private) as sender:
        return await sender.send(url, "msg_1", BODY, [SECRET], lambda: datetime.now(UTC))


def test_a_signature_is_what_the_standard_says() -> None:
    at = datetime(2026, 1, 12, 12, 0, 0, 999_999, tzinfo=UTC)
    made = headers("msg_1", at, BODY, [SECRET])
    signed = f"msg_1.{int(at.timestamp())}.{BODY}".encode()
    expected = base64.b64encode(hmac.new(b"k" * 32, signed, hashlib.sha256).digest()).decode()
    assert made["webhook-signature"] == f"v1,{expected}"
    assert made["webhook-timestamp"] == str(int(at.timestamp()))
    elsewhere = at.astimezone(timezone(timedelta(hours=-8)))
    assert headers("msg_1", elsewhere, BODY, [SECRET]) == made


async def test_what_is_sent(partner: Callable[..., Partner]) -> None:
    one = partner(answers=[(201, {}, b"thanks\x1b[31m\n")])
    outcome = await send(one.url)
    (request,) = one.requests
    assert (outcome.status, outcome.error, outcome.answer) == (201, None, "thanks [31m")
    assert outcome.arrived
    assert request.body == BODY.encode()
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("kserve-webhooks/")
    assert Webhook(SECRET).verify(request.body, request.headers) == json.loads(BODY)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("120", 120.0), ("Mon, 12 Jan 2026 12:02:00 GMT", 120.0), ("Mon, 12 Jan 2026 11:00:00 GMT", 0.0)]
    + [(bad, None) for bad in ("", "soon", "-5", "1e9", "9" * 400, "Mon, 99 Foo")],
)
async def test_retry_after(partner: Callable[..., Partner], value: str, seconds: float | None) -> None:
    one = partner(answers=[(503, {"Retry-After": value}, b"")])
    async with Sender(private=True) as sender:
        outcome = await sender.send(one.url, "msg_1", BODY, [SECRET], Clock())
    assert outcome.retry_after == seconds
    assert not outcome.arrived


async def test_no_more_than_a_little_of_an_answer_is_read(partner: Callable[..., Partner]) -> None:
    one = partner(answers=[(500, {}, b"y" * 10_000_000)])
    outcome = await send(one.url)
    assert outcome.answer == "y" * 197 + "..."


async def test_a_bomb_is_not_unpacked(partner: Callable[..., Partner]) -> None:
    one = partner(answers=[(500, {"Content-Encoding": "gzip"}, b"not gzip")])
    assert (await send(one.url)).status == 500


async def test_nobody_listens() -> None:
    outcome = await send("http://127.0.0.1:1/")
    assert outcome.status is None
    assert "refused" in (outcome.error or "").lower() or "connect" in (outcome.error or "").lower()


async def test_without_a_secret_nothing_is_sent(partner: Callable[..., Partner]) -> None:
    one = partner()
    async with Sender(private=True) as sender:
        assert not (await sender.send(one.url, "msg_1", BODY, [], Clock())).arrived
    assert one.connections == 0


@asynccontextmanager
async def raw(answer: bytes, pause: float = 0.0, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server that says these bytes, one part after the other, whatever it is asked; its port."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read(1)
            for byte in (answer[i : i + 1] for i in range(len(answer))) if pause else (answer,):
                writer.write(byte)
                await writer.drain()
                await asyncio.sleep(pause)
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.mark.parametrize(
    "answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 999999 x\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 99_999]
)
async def test_what_is_no_http_is_a_failure(answer: bytes) -> None:
    async with raw(answer) as port:
        outcome = await send(f"http://127.0.0.1:{port}/?token=s3cret")
    assert outcome.status is None
    assert outcome.error
    assert "s3cret" not in outcome.error


async def test_provisional_answers_come_to_an_end() -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    async with raw(hints * 3 + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as port:
        assert (await send(f"http://127.0.0.1:{port}/")).arrived
    async with raw(hints * 1000) as port:
        outcome = await send(f"http://127.0.0.1:{port}/")
    assert outcome.error == "one provisional answer after another"


async def test_an_answer_that_trickles_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.5)
    began = time.monotonic()
    async with raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 999, pause=0.05) as port:
        outcome = await send(f"http://127.0.0.1:{port}/")
    assert outcome.error == "no answer in time"
    assert time.monotonic() - began < 30  # all of it takes longer


async def test_a_body_that_trickles_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_SECONDS", 0.3)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n"
    async with raw(answer + b"z" * 900, pause=0.002) as port:
        outcome = await send(f"http://127.0.0.1:{port}/")
    assert outcome.status == 200
    assert outcome.arrived


def certificate(folder: Path, name: str) -> ssl.SSLContext:
    """The context of a server with a certificate that nobody has signed but itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "pem").write_bytes(private + made.public_bytes(pem))
    (folder / "trust").write_bytes(made.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "pem")
    return context


@pytest.mark.parametrize(
    ("name", "trusted", "arrives"), [("localhost", True, True), ("else", True, False), ("localhost", False, False)]
)
async def test_only_the_partner_that_its_certificate_names_is_told(
    tmp_path: Path, name: str, trusted: bool, arrives: bool
) -> None:
    context = certificate(tmp_path, name)
    trust = ssl.create_default_context(cafile=tmp_path / "trust") if trusted else None
    answer = b"HTTP/1.1 204 No Content\r\n\r\n"
    async with raw(answer, context=context) as port, Sender(private=True, trust=trust) as sender:
        outcome = await sender.send(f"https://localhost:{port}/", "msg_1", BODY, [SECRET], Clock())
    assert outcome.arrived == arrives
    assert arrives or "certificate" in (outcome.error or "").lower()


HANGING = """
import asyncio, socket, sys, threading, time
from kserve.notices.sender import Sender
from kserve.notices.store import now
def hang(*args, **options):
    print("asked", flush=True)
    asked.set()
    time.sleep(1000)
asked = threading.Event()
socket.getaddrinfo = hang
async def main():
    async with Sender(private=True) as sender:
        task = asyncio.create_task(sender.send("http://partner.example/", "msg_1", "{}", [sys.argv[1]], now))
        await asyncio.to_thread(asked.wait)
        task.cancel()
asyncio.run(main())
"""


def test_a_look_up_that_hangs_keeps_no_process_from_ending() -> None:
    process = python(HANGING, SECRET)
    out, err = process.communicate(timeout=PATIENCE)
    assert (out, err, process.returncode) == ("asked\n", "", 0)
