"""Requests that two servers behind one another may take for different ones, and others that parsers stumble over.

Written anew for the routes of this server, by the cases of:

- llhttp's request fixtures, https://github.com/nodejs/llhttp, test/request/*.md (MIT licence), strict and lenient ones;
- the permutations of ``Transfer-Encoding`` of smuggler, https://github.com/defparam/smuggler (MIT licence);
- "HTTP Desync Attacks" and "Browser-Powered Desync Attacks" by James Kettle (techniques only): CL.TE, TE.CL, TE.TE,
  CL.0, pauses, what hides behind an upgrade;
- RFC 9110 and 9112: what they let a server refuse, and what they forbid it to accept.
"""

from __future__ import annotations

from serving.corpus import BATCH, raw, score

HIDDEN = "GET /v3/scores/7 HTTP/1.1\nHost: hidden\nX-Request-Id: hidden\n\n"
"""What a smuggler wants to be taken for a request of its own, or for none."""

POST = "POST /v3/scores/batch HTTP/1.1\nHost: x\nContent-Type: application/json\n"
GET = "GET /v3/scores/42 HTTP/1.1\nHost: x\n"
TEXT = BATCH.decode()
N = len(TEXT)
CHUNKS = f"{N:x}\n{TEXT}\n0\n\n"


def get(lines: str) -> bytes:
    """A score with these lines too. LF stands for CRLF here and below."""
    return raw(f"{GET}{lines}\n\n")


def post(lines: str, body: str = TEXT) -> bytes:
    return raw(f"{POST}{lines}\n\n{body}")


def chunks(body: str) -> bytes:
    return post("Transfer-Encoding: chunked", body)


def line(first: str, lines: str = "Host: x") -> bytes:
    return raw(f"{first}\n{lines}\n\n")


INVALID = {
    "ice": line("GET /v3/scores/42 ICE/1.0"),
    "nearly ice": line("GET /v3/scores/42 IHTTP/1.0"),
    "rtsp": line("PUT /v3/scores/42 RTSP/1.0"),
    "announce": line("ANNOUNCE /v3/scores/42 HTTP/1.0"),
    "headers apart by cr": b"GET /v3/scores/42 HTTP/1.1\r\nHost: x\r\nFoo: 1\rBar: 2\r\n\r\n",
    "headers apart by lf": post("x:x\0").replace(b"\0", b"\nTransfer-Encoding: chunked"),
    "no end, but a request": raw(f"{GET}Connection: close\n\rZGET /v3/scores/7: HTTP/1.1\nHost: a\n\n"),
    "an empty one apart by cr": post("Connection: Close\nx:\rTransfer-Encoding: chunked", CHUNKS),
    "an empty one apart by lf": post("x:\0", CHUNKS).replace(b"\0", b"\nTransfer-Encoding: chunked"),
    "at in a name": get("Fo@: Failure"),
    "control in a name": get("Foo\x01test: Bar"),
    "no name": get(": Bar"),
    "long method": line("MKCOLA /v3/scores/42 HTTP/1.1"),
    "folded name": get("name\n : value"),
    "corrupt connection": get("Connection\r\x1b5\xd5eep-Alive\nAccept-Encoding: gzip"),
    "corrupt name": get("X-Some-Header\r\x1b5\xd5eep-Alive"),
    "length hidden by lf": raw(f"{GET}Dummy: x\0\n\n{HIDDEN}").replace(b"\0", b"\nContent-Length: 65"),
    "version 5.6": line("GET /v3/scores/42 HTTP/5.6"),
    "version 1.10": line("GET /v3/scores/42 HTTP/1.10"),
    "version 1,1": line("GET /v3/scores/42 HTTP/1,1"),
    "version 01.1": line("GET /v3/scores/42 HTTP/01.1"),
    "version 1.2": line("GET /v3/scores/42 HTTP/1.2"),
    "blank before the first header": raw("GET /v3/scores/42 HTTP/1.1\n Host: x\n\n"),
    "only lf": chunks(CHUNKS).replace(b"\r\n", b"\n"),
    "only cr": get("Accept: x").replace(b"\r\n", b"\r"),
    "folded length": post(f"Foo: bar\n Content-Length: {N}"),
    "tab before the first header": raw("GET /v3/scores/42 HTTP/1.1\n\tHost: x\n\n"),
    "form feed in a value": get("Accept: \f"),
    "form feed in the second": get("Accept: okay") + get("Accept: \f"),
    "empty first line": b"\r\n\r\n" + get("Accept: x"),
    "lf first": b"\n" + get("Accept: x"),
    "cr first": b"\r" + get("Accept: x"),
    "blank first": b" " + get("Accept: x"),
    "bom first": b"\xef\xbb\xbf" + get("Accept: x"),
    "nul first": b"\0" + get("Accept: x"),
    "cr cr lf": get("Accept: x").replace(b"x\r\n\r\n", b"x\r\r\n\r\n"),
    "cr at the end": get("Accept: x")[:-1] + b"\r\n",
    "lf at the end": get("Accept: x")[:-2] + b"\n",
    "only cr at the end": get("Accept: x")[:-2] + b"\rX",
}

LENGTHS = {
    "length with zeros": post(f"Content-Length: 0{N}"),
    "length and more": post(f"Content-Length: {N}\nOhai: world"),
    "length overflows": post("Content-Length: 1000000000000000000000"),
    "length is 2^64": post("Content-Length: 18446744073709551616"),
    "length is 2^64 and some": post(f"Content-Length: {2**64 + N}"),
    "length is 2^63": post("Content-Length: 9223372036854775808", ""),
    "length is 2^32 and some": post(f"Content-Length: {2**32 + N}", ""),
    "lengths differ": post("Content-Length: 1\nContent-Length: 2"),
    "lengths agree": post(f"Content-Length: {N}\nContent-Length: {N}"),
    "lengths differ, hidden": post(f"Content-Length: 0\nContent-Length: {len(HIDDEN)}", HIDDEN),
    "lengths in a list": post(f"Content-Length: {N}, {N}"),
    "lengths in a list differ": post(f"Content-Length: 0, {N}"),
    "identity and length": post(f"Content-Length: {N}\nTransfer-Encoding: identity"),
    "funky": raw(f"POST /v3/scores/batch HTTP/1.0\nHost: x\nconTENT-Length: {N}\n\n{TEXT}"),
    "blanks around a length": post(f"Content-Length:  {N} "),
    "a tab before a length": post(f"Content-Length:\t{N}"),
    "a blank in a length": post("Content-Length: 2 4"),
    "two numbers": post("Content-Length: 13 37"),
    "no length": post("Content-Length:"),
    "cr for dash": post(f"Content\rLength: {N}"),
    "underscore for dash": post(f"Content_Length: {N}"),
    "blank for dash": post(f"Content Length: {N}"),
    "signed": post(f"Content-Length: +{N}"),
    "negative": post("Content-Length: -1"),
    "minus zero": post("Content-Length: -0", ""),
    "hexadecimal": post(f"Content-Length: 0x{N:x}"),
    "with an exponent": post("Content-Length: 2e1"),
    "with a point": post(f"Content-Length: {N}.0"),
    "with an underscore": post("Content-Length: 2_4"),
    "other digits": post("Content-Length: \xb2"),
    "nul in a length": post(f"Content-Length: {N}\0"),
    "quoted": post(f'Content-Length: "{N}"'),
    "folded, empty at first": post(f"Content-Length:\n {N}"),
    "blank before its colon": post(f"Content-Length : {N}"),
    "longer than the body": post(f"Content-Length: {N + 100}"),
    "shorter than the body": post(f"Content-Length: {N - 1}"),
    "cl.0": raw(f"{GET}Content-Length: {len(HIDDEN)}\n\n{HIDDEN}"),
    "cl.0 of a head": raw(f"HEAD /v3/scores/42 HTTP/1.1\nHost: x\nContent-Length: {len(HIDDEN)}\n\n{HIDDEN}"),
    "0.cl": raw(f"{GET}Content-Length: 0\n\n{HIDDEN}"),
    "a request as a batch": post(f"Content-Length: {len(HIDDEN) + HIDDEN.count(chr(10))}", HIDDEN),
    "a batch that is a score": post("Content-Length: 0", HIDDEN),
    "a length before another's type": raw(f"{POST[:-1]}\nContent-Type: x\nContent-Length: {N}\n\n{TEXT}"),
    "a length of a get with a type": raw(f"{GET}Content-Type: application/json\nContent-Length: {N}\n\n{TEXT}"),
    "lengthless": post("Accept: */*"),
    "crlf behind a body": post(f"Content-Length: {N}", TEXT + "\n"),
    "crlfs behind a body": post(f"Content-Length: {N}", TEXT + "\n\n"),
    "lf behind a body": post(f"Content-Length: {N}") + b"\n",
    "garbage behind a body": post(f"Content-Length: {N}", TEXT + "x"),
    "three behind one another": (post("Content-Length: 3", "AAA") + post("Content-Length: 4", "BBBB")) * 2,
}

CHUNKED = {
    "chunks": chunks(CHUNKS),
    "many chunks": chunks("".join(f"1\n{letter}\n" for letter in TEXT) + "0\n\n"),
    "capital size": chunks(f"{N:X}\n{TEXT}\n0\n\n"),
    "zeros before a size": chunks(f"000{N:x}\n{TEXT}\n000\n\n"),
    "trailers": chunks(f"{N:x}\n{TEXT}\n0\nVary: *\nContent-Type: text/plain\n\n"),
    "length in trailers": chunks(f"{N:x}\n{TEXT}\n0\nContent-Length: 50\n\n"),
    "chunked in trailers": chunks(f"{N:x}\n{TEXT}\n0\nTransfer-Encoding: chunked\n\n"),
    "a request in trailers": chunks(f"{N:x}\n{TEXT}\n0\n{HIDDEN}"),
    "a trailer that is none": chunks(f"{N:x}\n{TEXT}\n0\nno trailer\n\n"),
    "extensions": chunks(f"{N:x};ilove;so=much;another=value\n{TEXT}\n0;x\n\n"),
    "an extension without semicolon": chunks(f"{N:x} erf\n{TEXT}\n0 rrr\n\n"),
    "no extension behind a semicolon": chunks(f"{N:x};\n{TEXT}\n0\n\n"),
    "a quoted extension": chunks(f'{N:x};a="I \\"love\\"; \\\\x\\\\";b="c"\n{TEXT}\n0\n\n'),
    "an open quote": chunks(f'{N:x};a="b\n{TEXT}\n0\n\n'),
    "a request in an extension": chunks(f"{N:x};\0\n{TEXT}\n0\n\n").replace(b"\0", b"\n" + raw(HIDDEN)),
    "lf in an extension": chunks(f"{N:x};a\0b\n{TEXT}\n0\n\n").replace(b"\0", b"\n"),
    "cr in an extension": chunks(f"{N:x};a\rb\n{TEXT}\n0\n\n"),
    "a long extension": chunks(f"{N:x};{'a' * 9000}\n{TEXT}\n0\n\n"),
    "a size with a blank behind": chunks(f"{N:x} \n{TEXT}\n0\n\n"),
    "a size with a blank before": chunks(f" {N:x}\n{TEXT}\n0\n\n"),
    "a size with a sign": chunks(f"+{N:x}\n{TEXT}\n0\n\n"),
    "a size with 0x": chunks(f"0x{N:x}\n{TEXT}\n0\n\n"),
    "a negative size": chunks(f"-1\n{TEXT}\n0\n\n"),
    "a size with an underscore": chunks(f"1_8\n{TEXT}\n0\n\n"),
    "no size": chunks(f"\n{TEXT}\n0\n\n"),
    "a size of 2^64": chunks(f"10000000000000000\n{TEXT}\n0\n\n"),
    "a size of 2^64 and some": chunks(f"100000000000000{N:02x}\n{TEXT}\n0\n\n"),
    "a size of 17 digits": chunks(f"{N:017x}\n{TEXT}\n0\n\n"),
    "no last chunk": chunks(f"{N:x}\n{TEXT}\n\n"),
    "a size apart by lf": chunks(f"{N:x}\0{TEXT}\n0\n\n").replace(b"\0", b"\n"),
    "a size apart by cr": chunks(f"{N:x}\r{TEXT}\n0\n\n"),
    "cr cr behind a size": chunks(f"{N:x}\r\r;x\n{TEXT}\n0\n\n"),
    "chunk data without crlf": chunks(f"{N:x}\n{TEXT}0\n\n"),
    "chunk data with lf": chunks(f"{N:x}\n{TEXT}\0" + "0\n\n").replace(b"\0", b"\n"),
    "chunk data with two bytes": chunks(f"{N:x}\n{TEXT}XX0\n\n"),
    "a body that ends twice": chunks(f"0\n\n{CHUNKS}"),
    "a last chunk with lf": chunks(f"{N:x}\n{TEXT}\n0\0\0").replace(b"\0", b"\n"),
    "nothing in chunks": chunks("0\n\n"),
    "nothing at all": chunks(""),
    "chunks of a get": raw(f"{GET}Transfer-Encoding: chunked\n\n{CHUNKS}"),
    "a request in chunks of a get": raw(f"{GET}Transfer-Encoding: chunked\n\n0\n\n{HIDDEN}"),
    "http/1.0": raw(f"POST /v3/scores/batch HTTP/1.0\nTransfer-Encoding: chunked\n\n{CHUNKS}"),
    "closing": post("Connection: close\nTransfer-Encoding: chunked", CHUNKS + HIDDEN),
}

CODINGS = {
    name: post(f"Transfer-Encoding: {text}", CHUNKS + HIDDEN)
    for name, text in {
        "pigeons": "pigeons",
        "identity": "identity",
        "chunked first": "chunked, deflate",
        "chunked last": "deflate, chunked",
        "chunked alone in a list": ", chunked",
        "chunked before nothing": "chunked,",
        "chunked twice": "chunked, chunked",
        "chunkedchunked": "chunkedchunked",
        "capitals": "CHUNKED",
        "mixed": "cHuNkEd",
        "quoted chunked": '"chunked"',
        "with a parameter": "chunked;q=1",
        "with a nul": "chunked\0",
        "cut": "chunke",
        "with a tab": "\tchunked",
        "with blanks": "   chunked   ",
        "folded behind": "chunked\n  abc",
        "folded before": "\n chunked",
        "x-chunked": "x-chunked",
        "gzip": "gzip",
        "no coding": "",
    }.items()
}

_TWICE = {
    "deflate and chunked": ("Transfer-Encoding: deflate", "Transfer-Encoding: chunked"),
    "chunked and deflate": ("Transfer-Encoding: chunked", "Transfer-Encoding: deflate"),
    "identity and chunked": ("Transfer-Encoding: identity", "Transfer-Encoding: chunked"),
    "chunked and identity": ("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
    "chunked and chunked": ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    "chunked and cow": ("Transfer-Encoding: chunked", "Transfer-encoding: cow"),
    "nothing and chunked": ("Transfer-Encoding:", "Transfer-Encoding: chunked"),
    "nothing thrice": ("Content-Length: 10", "Transfer-Encoding:", "Transfer-Encoding:", "Transfer-Encoding:"),
    "a length and an empty coding": ("Transfer-Encoding:", f"Content-Length: {N}"),
    "an underscore": ("Transfer_Encoding: chunked", f"Content-Length: {N}"),
    "te and a length": ("TE: chunked", f"Content-Length: {N}"),
    "trailer and a length": ("Trailer: Content-Length", f"Content-Length: {N}"),
    "connection names the length": (f"Content-Length: {N}", "Connection: content-length"),
    "connection names the coding": ("Transfer-Encoding: chunked", "Connection: transfer-encoding"),
    "connection names the key": (f"Content-Length: {N}", "Connection: keep-alive, x-api-key"),
}
TE_TE = {name: post("\n".join(lines), CHUNKS + HIDDEN) for name, lines in _TWICE.items()}

_ODD = [*range(0x00, 0x21), 0x22, 0x2C, 0x3B, 0x7F, 0x80, 0x85, 0xA0, 0xFF]
_PLACES = {
    "before the value": "Transfer-Encoding:{}chunked",
    "behind the blank": "Transfer-Encoding: {}chunked",
    "behind the value": "Transfer-Encoding: chunked{}",
    "before the name": "{}Transfer-Encoding: chunked",
    "behind the name": "Transfer-Encoding{}: chunked",
    "in the name": "Transfer{}-Encoding: chunked",
    "before the line": "X: y{}\nTransfer-Encoding: chunked",
    "for the end of a line": "X: y{}Transfer-Encoding: chunked",
    "behind a cr": "X: y\r{}Transfer-Encoding: chunked",
    "in the value": "Transfer-Encoding: chun{}ked",
}


def permutations() -> dict[str, bytes]:
    """A byte that should not be there, by where it is; with a length, so that they are CL.TE or TE.CL to somebody."""
    found = {}
    for place, text in _PLACES.items():
        for byte in _ODD:
            lines = raw(text.replace("{}", "\0")).replace(b"\0", bytes([byte]))
            head = raw(POST) + lines + b"\r\n"
            found[f"{byte:02x} {place}, cl.te"] = head + raw(f"Content-Length: {len(raw(CHUNKS))}\n\n{CHUNKS}")
            found[f"{byte:02x} {place}, te.cl"] = head + raw(
                f"Content-Length: 4\n\n{len(raw(HIDDEN)):x}\n{HIDDEN}\n0\n\n"
            )
    return found


BOTH = {
    "cl.te": post("Content-Length: 6\nTransfer-Encoding: chunked", "0\n\nG"),
    "cl.te with a request": post(
        f"Content-Length: {5 + len(raw(HIDDEN))}\nTransfer-Encoding: chunked", "0\n\n" + HIDDEN
    ),
    "te.cl": post("Transfer-Encoding: chunked\nContent-Length: 4", f"{len(raw(HIDDEN)):x}\n{HIDDEN}\n0\n\n"),
    "te.cl, x": post("Transfer-Encoding: chunked\nContent-Length: 6", "0\n\nX"),
    "cl.te of a get": raw(f"{GET}Content-Length: 5\nTransfer-Encoding: chunked\n\n0\n\n{HIDDEN}"),
    "cl.te in 1.0": raw(
        f"POST /v3/scores/batch HTTP/1.0\nContent-Length: 5\nTransfer-Encoding: chunked\n\n0\n\n{HIDDEN}"
    ),
}

LINES = {
    "methods": line("PATCH /v3/scores/42 HTTP/1.1", "Host: x\nContent-Length: 0"),
    "m-search": line("M-SEARCH * HTTP/1.1", 'HOST: 239.255.255.250:1900\nMAN: "ssdp:discover"\nST: "ssdp:all"'),
    "report": line("REPORT /v3/scores/42 HTTP/1.1"),
    "purge": line("PURGE /v3/scores/42 HTTP/1.1"),
    "link twice": line("LINK /v3/scores/42 HTTP/1.1", "Host: x\nLink: <a>\nLink: <b>"),
    "source": line("SOURCE /v3/scores/42 HTTP/1.1"),
    "source of ice": line("SOURCE /v3/scores/42 ICE/1.0"),
    "options": line("OPTIONS /v3/scores/42 HTTP/1.1", "Header1: Value1\nHeader2:\t Value2"),
    "trace": line("TRACE /v3/scores/42 HTTP/1.1"),
    "pri": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "connect": line("CONNECT x:443 HTTP/1.1") + b"some data\r\nand more",
    "connect in 1.0": line("CONNECT x:443 HTTP/1.0", "User-agent: Mozilla/1.1N") + b"some data\r\nand more",
    "connect with a length": line("CONNECT x:443 HTTP/1.0", "Content-Length: 10") + b'blarfcicle"',
    "connect and a request": line("CONNECT x:443 HTTP/1.1") + raw(HIDDEN),
    "no version": b"GET /v3/scores/42\r\n\r\n",
    "no version, a blank": b"GET /v3/scores/42 \r\n\r\n",
    "a blank behind the version": line("GET /v3/scores/42 HTTP/1.1 "),
    "a tab": line("GET\t/v3/scores/42\tHTTP/1.1"),
    "a tab behind the target": line("GET /v3/scores/42\t HTTP/1.1"),
    "two blanks behind": line("GET /v3/scores/42  HTTP/1.1"),
    "small http": line("GET /v3/scores/42 http/1.1"),
    "a blank in the target": line("GET /v3/scores/4 2 HTTP/1.1"),
    "a target with http": line("GET /v3/scores/42 HTTP/1.1 HTTP/1.1"),
    "quotes": line('GET /v3/scores/42"x"?foo=\\"bar\\" HTTP/1.1'),
    "two question marks": line("GET /v3/scores/42?foo=bar?baz HTTP/1.1"),
    "a bar": line("GET /v3/scores/42?q=| HTTP/1.1"),
    "utf-8": line("GET /v3/scores/42\xce\xb4 HTTP/1.1"),
    "utf-8 in the query": line("GET /v3/scores/42?key=\xce\xb4 HTTP/1.1"),
    "del": line("GET /v3/scores/42\x7f HTTP/1.1"),
    "nul in the target": line("GET /v3/scores/42\0 HTTP/1.1"),
    "nul in the key": line("GET /v3/scores/42?key=a\0 HTTP/1.1"),
    "cr in the target": line("GET /v3/scores/42\rHTTP/1.1"),
    "lf in the target": line("GET /v3/scores/42\0HTTP/1.1").replace(b"\0", b"\n"),
    "a fragment": line("GET /v3/scores/42?key=x#posts HTTP/1.1"),
    "percent nul": line("GET /v3/scores/42%00 HTTP/1.1"),
    "percent slash": line("GET /v3%2fscores/42 HTTP/1.1"),
    "percent question mark": line("GET /v3/scores/42%3fkey=x HTTP/1.1"),
    "a percent key": line("GET /v3/scores/42?k%65y=x HTTP/1.1"),
    "an empty key": line("GET /v3/scores/42?key= HTTP/1.1"),
    "two keys": line("GET /v3/scores/42?key=a&key=b HTTP/1.1"),
    "semicolon keys": line("GET /v3/scores/42?key=a;key=b HTTP/1.1"),
    "capital key": line("GET /v3/scores/42?KEY=a HTTP/1.1"),
    "plus": line("GET /v3/scores/+42 HTTP/1.1"),
    "semicolon": line("GET /v3/scores/42;x HTTP/1.1"),
    "dot": line("GET /v3/scores/./42 HTTP/1.1"),
    "slashes": line("GET //v3/scores/42 HTTP/1.1"),
    "backslash": line("GET \\v3\\scores\\42 HTTP/1.1"),
    "absolute": line("GET http://x/v3/scores/42 HTTP/1.1"),
    "absolute, another host": line("GET http://y/v3/scores/42 HTTP/1.1"),
    "absolute, no path": line("GET http://x?hail=all HTTP/1.1"),
    "absolute, a port": line("GET http://x:1234?hail=all HTTP/1.1"),
    "absolute, a bad port": line("GET http://x:99999/v3/scores/42 HTTP/1.1"),
    "absolute, who": line("GET http://a%12:b!&*$@x:1234/v3/scores/42 HTTP/1.1"),
    "absolute, https": line("GET https://x/v3/scores/42 HTTP/1.1"),
    "absolute, no scheme": line("GET //x/v3/scores/42 HTTP/1.1"),
    "absolute, v6": line("GET http://[::1/v3/scores/42 HTTP/1.1"),
    "authority": line("GET x:80 HTTP/1.1"),
    "asterisk": line("GET * HTTP/1.1"),
    "an empty target": line("GET  HTTP/1.1"),
    "no slash": line("GET v3/scores/42 HTTP/1.1"),
    "a path of 8190": line(f"GET /v3/scores/{'4' * (8190 - 11)} HTTP/1.1"),
    "a path of 9000": line(f"GET /v3/scores/{'4' * 9000} HTTP/1.1"),
    "a key of 8000": line(f"GET /v3/scores/42?key={'k' * 8000} HTTP/1.1"),
    "a key of 8200": line(f"GET /v3/scores/42?key={'k' * 8200} HTTP/1.1"),
    "a method of 9000": line(f"{'G' * 9000} / HTTP/1.1"),
    "http/0.9 and a request": b"GET /v3/scores/42\r\n" + raw(HIDDEN),
}
for length in (8163, 8164, 8165, 8166, 8171, 8172, 8173, 8174, 8175):  # around what aiohttp takes for a line
    LINES[f"a key of {length}"] = line(f"GET /v3/scores/42?key={'k' * length} HTTP/1.1")

_HEADERS = {
    "no host": None,
    "two hosts": "Host: y",
    "the same host twice": "Host: x",
    "a folded host": " y",
    "a host behind a tab": "\tHost: y",
    "host with a slash": "Host: a/b",
    "host in small letters": "host: y",
    "host with a blank": "Host : y",
    "certificate": "X-SSL-Nonsense:   -----BEGIN CERTIFICATE-----\n\tMIIFbTCC\n\tRA==\n\t-----END CERTIFICATE-----",
    "folded lines": "Line1:   abc\n\tdef\n ghi\n\t\tjkl\n  mno \n\t \tqrs\nLine2: \t line2\t\nLine3:\n l3\nLine4: \n ",
    "a folded close": "Connection:\n close",
    "a folded known one": "Accept: a\n b",
    "a folded nothing": "Accept:\n ",
    "a fold with a request": f"Accept: a\n {HIDDEN[:-2]}",
    "latin-1": "Accept: D\xfcsseldorf",
    "latin-1 in a name": "Acc\xe9pt: x",
    "255": "Accept: \xffValue2",
    "dumbpack": "aaaaaaaaaaaaa:++++++++++",
    "nothing": "Accept:",
    "a blank": "Accept: ",
    "a tab for the blank": "Accept:\tx",
    "a tab behind": "Accept: x\t",
    "a nul": "Accept: \0",
    "a del": "Accept: \x7f",
    "a vertical tab": "Accept: a\vb",
    "an escape": "Accept: \x1b",
    "a colon": "Accept: : x",
    "two colons": "Accept:: x",
    "no colon": "Accept",
    "a known one without a colon": "Cookie x",
    "only a colon": ":",
    "quotes in a name": '"Accept": x',
    "brackets in a name": "Acc(ept): x",
    "a blank in a name": "Acc ept: x",
    "an underscore in a name": "X_Api_Key: x",
    "an underscore tag": "If_None_Match: *",
    "token bytes in a name": "!#$%&'*+-.^_`|~: x",
    "keep-alive": "Connection: keep-alive",
    "keep-alive of another": "Proxy-Connection: close",
    "keep-alive, a list": "Connection: keep-alive, Keep-Alive",
    "keep-alive, quoted": 'Connection: "close"',
    "tokens": "Connection: close, token, upgrade, token, keep-alive",
    "close in capitals": "Connection: CLOSE",
    "close in a list": "Connection: x,close",
    "close and keep-alive": "Connection: close\nConnection: keep-alive",
    "keep-alive and close": "Connection: keep-alive\nConnection: close",
    "nothing to do": "Connection:",
    "connection names host": "Connection: Host",
    "upgrade": "Connection: Upgrade\nUpgrade: WebSocket",
    "upgrade without a word": "Upgrade: websocket",
    "upgrade by word alone": "Connection: upgrade",
    "upgrade, kept alive": "Connection: keep-alive, upgrade\nUpgrade: WebSocket",
    "upgrade folded": "Connection: Something,\n Upgrade, ,Keep-Alive\nUpgrade: WebSocket",
    "upgrade to h2c": "Connection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AAMAAABkAAQ",
    "upgrade to 2.0": "Connection: Upgrade\nUpgrade: HTTP/2.0",
    "upgrade to tls": "Connection: Upgrade\nUpgrade: TLS/1.0",
    "upgrade, a real one": (
        "Connection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    ),
    "expects": "Expect: 100-continue",
    "expects in capitals": "EXPECT: 100-CONTINUE",
    "expects nothing": "Expect:",
    "expects no text": "Expect: \xff",
    "expects more": "Expect: 100-continue, x",
    "expects y": "Expect: y\nExpect: 100-continue",
    "an override": "X-HTTP-Method-Override: POST",
    "another path": "X-Original-URL: /v3/scores/7\nX-Rewrite-URL: /v3/scores/7",
    "coded": "Content-Encoding: gzip",
    "a range": "Range: bytes=0-3",
    "if-match": "If-Match: x",
    "two tags": 'If-None-Match: "x"\nIf-None-Match: *',
    "two ids": "X-Request-Id: a\nX-Request-Id: b",
    "an id with crlf": "X-Request-Id: a%0d%0aSet-Cookie: b",
    "a long id": f"X-Request-Id: {'a' * 65}",
    "two schemes": "Authorization: Basic eA==\nAuthorization: Bearer y",
    "a scheme alone": "Authorization: Bearer",
    "a key and no key": "X-Api-Key:",
    "two keys, two ways": "Authorization: Bearer x\nX-Api-Key: y",
    "the same key twice": "X-Api-Key: x\nX-Api-Key: x",
    "128 headers": "\n".join(f"X-{i}: y" for i in range(127)),
    "129 headers": "\n".join(f"X-{i}: y" for i in range(128)),
    "200 headers": "\n".join(f"X-{i}: y" for i in range(200)),
    "a long name": f"{'a' * 8200}: x",
    "a long unknown value": f"X: {'a' * 8200}",
    "64 kB of headers": "\n".join(f"X-{i}: {'y' * 1000}" for i in range(64)),
}
for length in (8172, 8174, 8180, 8181, 8182, 8183, 8184, 8185, 8188, 8190, 8191):  # around what aiohttp takes
    _HEADERS[f"a cookie of {length}"] = f"Cookie: {'c' * length}"
HEADERS = {
    name: line("GET /v3/scores/42 HTTP/1.1", "Accept: x") if text is None else get(text)
    for name, text in _HEADERS.items()
}
BODIES = {
    "pushed by an upgrade": raw(f"{GET}Connection: Upgrade\nUpgrade: WebSocket\n\nHot diggity dogg"),
    "an upgrade with a body": raw(f"{POST}Connection: upgrade\nContent-Length: {N}\nUpgrade: ws\n\n{TEXT}{HIDDEN}"),
    "an upgrade with chunks": raw(
        f"{POST}Connection: upgrade\nTransfer-Encoding: chunked\nUpgrade: ws\n\n{CHUNKS}{HIDDEN}"
    ),
    "a body that is expected": post(f"Expect: 100-continue\nContent-Length: {N}"),
    "a body that expects wonders": post(f"Expect: wonders\nContent-Length: {N}"),
    "an expected body of a get": raw(f"{GET}Expect: 100-continue\nContent-Length: {len(raw(HIDDEN))}\n\n{HIDDEN}"),
    "an expected body that never comes": post(f"Expect: 100-continue\nContent-Length: {N}", ""),
    "a body for nobody": raw(f"POST /nowhere HTTP/1.1\nHost: x\nContent-Length: {len(raw(HIDDEN))}\n\n{HIDDEN}"),
    "a large body for nobody": raw("POST /nowhere HTTP/1.1\nHost: x\nContent-Length: 70000\n\n") + b"x" * 70000,
    "a body over the limit": raw(f"{POST}Content-Length: 2000000\n\n") + b"[" * 100_000,
    "a body over the limit, in chunks": raw(f"{POST}Transfer-Encoding: chunked\n\n")
    + b"ffff\r\n"
    + b"[" * 65535
    + b"\r\n",
    "a body of a delete": raw(f"DELETE /v3/scores/42 HTTP/1.1\nHost: x\nContent-Length: {N}\n\n{TEXT}"),
    "a batch by put": raw(f"PUT /v3/scores/batch HTTP/1.1\nHost: x\nContent-Length: {N}\n\n{TEXT}"),
    "a batch by get": raw(f"GET /v3/scores/batch HTTP/1.1\nHost: x\nContent-Length: {N}\n\n{TEXT}"),
    "a closing batch": post(f"Connection: close\nContent-Length: {N}", TEXT + HIDDEN),
    "a batch of 1.0": raw(f"POST /v3/scores/batch HTTP/1.0\nContent-Length: {N}\n\n{TEXT}{HIDDEN}"),
    "a get of 1.0 and more": raw(f"GET /v3/scores/42 HTTP/1.0\n\n{HIDDEN}"),
    "two kinds of end": post(f"Content-Length: {N}") + raw(HIDDEN) + chunks(CHUNKS) + raw(HIDDEN),
    "a head, a batch, a score": score("42", method="HEAD") + post(f"Content-Length: {N}") + score("7"),
    "a cut head": raw(GET)[:-9],
    "a cut name": raw("GET /v3/scores/42 HTTP/1.1\nHost: x\nContent-Leng"),
    "a cut body": post(f"Content-Length: {N}")[:-3],
}

SMUGGLING = {
    f"{kind}: {name}": data
    for kind, cases in {
        "invalid": INVALID,
        "length": LENGTHS,
        "chunks": CHUNKED,
        "coding": CODINGS,
        "te.te": TE_TE,
        "both": BOTH,
        "line": LINES,
        "header": HEADERS,
        "body": BODIES,
    }.items()
    for name, data in cases.items()
}
PERMUTATIONS = permutations()
EVERY = SMUGGLING | PERMUTATIONS
