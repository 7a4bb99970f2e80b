"""Where webhooks may go: told from addresses, from URLs, and at the moment of the connection."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import given
from notices.support import Clock, Partner

from kserve.errors import InputError
from kserve.notices.sender import Sender
from kserve.notices.targets import check_url, objection

PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2001:4860:4860::8888", "64:ff9b::808:808"]
OURS = [
    "127.0.0.1",
    "127.255.255.254",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.1.1",
    "100.64.0.1",
    "0.0.0.0",
    "0.1.2.3",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "192.0.0.8",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "192.88.99.1",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "fc00::1",
    "fd12::1",
    "ff02::1",
    "2001:db8::1",
    "3fff::1",
    "2001::1",
    "2002:7f00:1::",
    "2002:808:808::",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:8.8.8.8",
    "::8.8.8.8",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "64:ff9b:1::808:808",
    "100::1",
    "5f00::1",
    "4000::1",
]
METADATA = ["169.254.169.254", "100.100.100.200", "168.63.129.16", "fd00:ec2::254", "::ffff:169.254.169.254"]
METADATA += ["169.254.170.2", "fd00:ec2::23", "192.0.0.192", "fd20:ce::254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::"]


@pytest.mark.parametrize("address", PUBLIC)
def test_the_internet_is_open(address: str) -> None:
    assert objection(address, private=False) is None


@pytest.mark.parametrize("address", OURS)
def test_our_own_network_is_open_only_when_allowed(address: str) -> None:
    assert objection(address, private=False)
    assert objection(address, private=True) is None


@pytest.mark.parametrize("address", METADATA)
@pytest.mark.parametrize("private", [True, False])
def test_where_clouds_keep_secrets_is_never_open(address: str, private: bool) -> None:
    assert objection(address, private)


@given(st.ip_addresses())
def test_an_address_that_is_not_of_the_internet_is_never_open(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    nat64 = ipaddress.ip_address("64:ff9b::") <= address if address.version == 6 else False
    if address.is_private or address.is_multicast or address.is_loopback or (not address.is_global and not nat64):
        assert objection(str(address), private=False)


@pytest.mark.parametrize(
    "url",
    [
        "http://8.8.8.8/",
        "ftp://8.8.8.8/",
        "file:///etc/passwd",
        "https://",
        "https://:443/",
        "//8.8.8.8/",
        "nonsense",
        "gopher://8.8.8.8",
        "https://user:pw@8.8.8.8/",
        "https://user@8.8.8.8/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://localhost/",
        "https://127.1/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://0177.0.0.1/",
        "https://0/",
        "https://169.254.169.254/latest",
        "https://8.8.8.8:99999/",
        "https://nowhere.invalid/",
        "https://10.0.0.1:8443/x",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(InputError):
        check_url(url, private=False)


@pytest.mark.parametrize("url", ["https://8.8.8.8/a b", "https://8.8.8.8/\n", "https://8.8.8.8/" + "x" * 2000])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(InputError):
        check_url(url, private=True)


def test_urls_that_are_taken() -> None:
    assert check_url("https://8.8.8.8/hook?a=1#part", private=False) == "https://8.8.8.8/hook?a=1"
    assert check_url("http://127.0.0.1:8080/hook", private=True) == "http://127.0.0.1:8080/hook"
    with pytest.raises(InputError, match="cloud"):
        check_url("http://169.254.169.254/", private=True)


class Rebinding(AbstractResolver):
    """A name server that says something else each time."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        address = self.addresses.pop(0)
        return [ResolveResult(hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0)]

    async def close(self) -> None:
        pass


def test_a_name_that_stands_for_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 443)) for ip in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(InputError, match=r"10\.0\.0\.1 is private"):
        check_url("https://partner.example/", private=False)


async def test_a_name_that_is_rebound_is_refused_at_the_connection(
    partner: Callable[..., Partner], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = partner()
    port = int(one.url.split(":")[2].partition("/")[0])
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", port))]
    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        url = check_url(f"https://partner.example:{port}/", private=False)
    async with Sender(private=False, resolver=Rebinding("127.0.0.1", "10.0.0.1")) as sender:
        for address in ("127.0.0.1", "10.0.0.1"):
            outcome = await sender.send(url, "msg_1", "{}", ["whsec_c2VjcmV0"], Clock())
            assert outcome.status is None
            assert address in (outcome.error or "")
            assert "no webhook may go there" in (outcome.error or "")
    assert one.connections == 0


async def test_an_address_in_the_url_is_checked_at_the_connection_too(partner: Callable[..., Partner]) -> None:
    one = partner()
    async with Sender(private=False) as sender:
        outcome = await sender.send(one.url, "msg_1", "{}", ["whsec_c2VjcmV0"], Clock())
    assert "loopback" in (outcome.error or "")
    assert one.connections == 0


async def test_a_redirect_leads_nowhere(partner: Callable[..., Partner]) -> None:
    inner = partner()
    outer = partner(answers=[(307, {"Location": inner.url}, b"")])
    async with Sender(private=True) as sender:
        outcome = await sender.send(outer.url, "msg_1", "{}", ["whsec_c2VjcmV0"], Clock())
    assert outcome.status == 307
    assert not outcome.arrived
    assert inner.connections == 0


async def test_proxies_of_the_environment_are_not_used(
    partner: Callable[..., Partner], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, proxy = partner(), partner()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url)
    async with Sender(private=True) as sender:
        assert (await sender.send(one.url, "msg_1", "{}", ["whsec_c2VjcmV0"], Clock())).arrived
    assert proxy.connections == 0
