"""Whose request it is, by address, with proxies before us or without."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from kserve._limits import ADDRESS, Limits
from kserve.errors import SettingError
from kserve.serving.addresses import client, network
from kserve.settings import Failures, load

FEW = Failures(rate=1, period=3600, burst=3)
PROXIES = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


def request(remote: str | None, *forwarded: str) -> web.BaseRequest:
    lines = CIMultiDict(("X-Forwarded-For", line) for line in forwarded)
    return make_mocked_request("GET", "/", lines).clone(remote=remote or "")


@pytest.mark.parametrize(
    ("remote", "forwarded", "whose"),
    [
        ("192.0.2.7", [], "192.0.2.7"),
        ("192.0.2.7", ["198.51.100.1"], "192.0.2.7"),  # anybody can say that
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["192.0.2.7"], "192.0.2.7"),
        ("::ffff:10.0.0.1", ["192.0.2.7"], "192.0.2.7"),
        ("10.0.0.1", ["198.51.100.1, 192.0.2.7"], "192.0.2.7"),
        ("10.0.0.1", ["198.51.100.1", "192.0.2.7,10.0.0.2 , fd00::2"], "192.0.2.7"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["192.0.2.7:4711"], "192.0.2.7"),
        ("fd00::1", ["[2001:db8::7]:4711, fd00::2"], "2001:db8::7"),
        ("10.0.0.1", ["192.0.2.7, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["192.0.2.7, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("", ["192.0.2.7"], ""),
    ],
)
def test_whose_request_it_is(remote: str, forwarded: list[str], whose: str) -> None:
    assert client(request(remote, *forwarded), PROXIES) == whose


def test_without_trusted_proxies_nobody_is_believed() -> None:
    assert client(request("10.0.0.1", "192.0.2.7"), []) == "10.0.0.1"


@given(
    written=st.lists(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=30), max_size=3),
    whose=st.ip_addresses().filter(lambda address: not any(address in network for network in PROXIES)),
)
def test_what_a_client_writes_makes_no_difference(written: list[str], whose: object) -> None:
    found = client(request("10.0.0.1", *written, f"{whose}, 10.9.9.9"), PROXIES)
    mapped = getattr(whose, "ipv4_mapped", None)
    assert ip_address(found or "") == (mapped or whose)


@pytest.mark.parametrize(
    ("address", "together"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "20010db800010002"),
        ("2001:db8:1:2::9%eth0", "20010db800010002"),
        ("", "-"),
        (None, "-"),
        ("/run/socket", "-"),
    ],
)
def test_addresses_that_are_one(address: str | None, together: str) -> None:
    assert network(address) == together
    Limits(None).take(together, FEW, kind=ADDRESS)


def test_a_network_that_is_none_is_no_setting() -> None:
    with pytest.raises(SettingError, match="trusted_proxies"):
        load(trusted_proxies=["10.0.0.1/8"])
