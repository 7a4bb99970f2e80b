"""Requests of every kind, as bytes: those that the compiled path answers itself, and those that it must not."""

from __future__ import annotations

from serving.support import LARGEST, request

from kserve._plain import HARMLESS

BATCH = b'{"ids":["42","999","x"]}'
JSON = "Content-Type: application/json"
LAST = request("GET", "/v3/scores/42", "Connection: close")


def score(path: str, *lines: str, method: str = "GET") -> bytes:
    return request(method, f"/v3/scores/{path}", *lines)


def raw(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode("latin-1")


def chunked(*chunks: bytes) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    return request("POST", "/v3/scores/batch", JSON, "Transfer-Encoding: chunked") + body


PLAIN = {
    "score": score("42"),
    "unscored": score("7"),
    "zero": score("0"),
    "largest": score(str(LARGEST)),
    "unknown": score("999"),
    "opted out": score("13"),
    "head": score("42", method="HEAD"),
    "head of unknown": score("999", method="HEAD"),
    "any tag": score("42", "If-None-Match: *"),
    "other tag": score("42", 'If-None-Match: "x"'),
    "tag of unknown": score("999", "If-None-Match: *"),
    "own id": score("42", "X-Request-Id: a.B-9_"),
    "own id of unknown": score("999", "X-Request-Id: mine"),
    "bad own id": score("42", "X-Request-Id: a b"),
    "long own id": score("42", "X-Request-Id: " + "x" * 65),
    "kept alive": score("42", "Connection: keep-alive"),
    "kept alive, odd case": score("42", "cONNECTION: Keep-ALIVE"),
    "harmless": score("42", *(f"{name.title()}: some thing" for name in sorted(HARMLESS))),
    "no blank": raw("GET /v3/scores/42 HTTP/1.1\nHost:x\n\n"),
    "long value": score("42", "Cookie: " + "c" * 8100),
}

OTHER = {
    "too large": score(str(LARGEST + 1)),
    "21 digits": score("1" * 21),
    "leading zero": score("042"),
    "no digits": score("x"),
    "no id": score(""),
    "trailing slash": score("42/"),
    "dots": request("GET", "/v3/profiles/../scores/42"),
    "percent": score("4%32"),
    "query": score("42?x=1"),
    "empty query": score("42?"),
    "fragment": score("42#x"),
    "absolute form": request("GET", "http://localhost/v3/scores/42"),
    "other route": request("GET", "/v3/profiles/42"),
    "no route": request("GET", "/nowhere"),
    "post": score("42", method="POST"),
    "small letters": score("42", method="get"),
    "http/1.0": raw("GET /v3/scores/42 HTTP/1.0\nHost: x\n\n"),
    "http/1.0 kept alive": raw("GET /v3/scores/42 HTTP/1.0\nConnection: keep-alive\n\n"),
    "http/2": raw("GET /v3/scores/42 HTTP/2.0\nHost: x\n\n"),
    "http/0.9": b"GET /v3/scores/42\r\n\r\n",
    "close": LAST,
    "close and more": score("42", "Connection: close, keep-alive"),
    "no host": raw("GET /v3/scores/42 HTTP/1.1\nAccept: x\n\n"),
    "no headers": raw("GET /v3/scores/42 HTTP/1.1\n\n"),
    "two hosts": score("42", "Host: y"),
    "empty host": raw("GET /v3/scores/42 HTTP/1.1\nHost: \n\n"),
    "two tags": score("42", 'If-None-Match: "x"', "If-None-Match: *"),
    "two ids": score("42", "X-Request-Id: a", "X-Request-Id: b"),
    "two accepts": score("42", "Accept: a", "Accept: b"),
    "two user agents": score("42", "User-Agent: a", "User-Agent: b"),
    "unknown header": score("42", "X-What-Is-This: y"),
    "tab": score("42", "Accept:\tx\ty"),
    "blanks around": score("42", "Accept:   x   "),
    "folded": score("42", "Accept: x", " y"),
    "blank before colon": score("42", "Accept : x"),
    "nul": score("42", "Accept: x\0y"),
    "bare cr": score("42", "Accept: x\ry"),
    "latin-1": raw("GET /v3/scores/42 HTTP/1.1\nHost: x\nAccept: \xff\n\n"),
    "bare lf": b"GET /v3/scores/42 HTTP/1.1\nHost: x\n\n",
    "one bare lf": b"GET /v3/scores/42 HTTP/1.1\r\nHost: x\nAccept: y\r\n\r\n",
    "two blanks": raw("GET  /v3/scores/42 HTTP/1.1\nHost: x\n\n"),
    "blank line before": b"\r\n" + score("42"),
    "many headers": score("42", *(f"X-{i}: y" for i in range(100))),
    "too many headers": score("42", *(f"X-{i}: y" for i in range(130))),
    "too long value": score("42", "Cookie: " + "c" * 8200),
    "get with a body": request("GET", "/v3/scores/42", body=b"GET /v3/scores/7"),
    "empty body": score("42", "Content-Length: 0"),
    "two lengths": score("42", "Content-Length: 0", "Content-Length: 0"),
    "bad length": score("42", "Content-Length: +1"),
    "length and chunks": score("42", "Content-Length: 5", "Transfer-Encoding: chunked"),
    "odd coding": score("42", "Transfer-Encoding: identity"),
    "upgrade": score("42", "Connection: upgrade", "Upgrade: websocket"),
    "h2c": score("42", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQ"),
    "expects": score("42", "Expect: 100-continue"),
    "expects wonders": score("42", "Expect: wonders"),
    "old websocket": score("42", "Sec-WebSocket-Key1: x"),
    "no http": b"hello\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "batch": request("POST", "/v3/scores/batch", JSON, body=BATCH),
    "chunked batch": chunked(BATCH[:9], BATCH[9:]),
    "chunks of a request": chunked(score("42"), b""),
    "bad batch": request("POST", "/v3/scores/batch", JSON, body=b"{"),
    "options": request("OPTIONS", "*"),
}

CORPUS = PLAIN | OTHER
