"""Whose request it is, by address: the client's own, or the one that a trusted proxy names."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from aiohttp import web

FORWARDED_FOR = "X-Forwarded-For"


def client(request: web.BaseRequest, proxies: Sequence[IPv4Network | IPv6Network]) -> str | None:
    """The address that a request comes from; None when the system does not say.

    A trusted proxy has appended the address that asked it to X-Forwarded-For, so that is read from its end: the last
    address that is no trusted proxy is the client's. What comes before it anybody may have written.
    """
    address = request.remote
    if not proxies or not _is_in(address, proxies):
        return address
    for named in reversed(",".join(request.headers.getall(FORWARDED_FOR, ())).split(",")):
        found = _address(_without_port(named.strip()))
        if found is None:
            break
        address = str(found)
        if not _is_in(address, proxies):
            break
    return address


def network(address: str | None) -> str:
    """Whose failures are counted together: an IPv4 address, or 64 bits of an IPv6 address in hexadecimal."""
    found = _address(address or "")
    if found is None:
        return "-"
    return f"{int(found) >> 64:016x}" if isinstance(found, IPv6Address) else str(found)


def _is_in(address: str | None, proxies: Sequence[IPv4Network | IPv6Network]) -> bool:
    found = _address(address or "")
    return found is not None and any(found in network for network in proxies)


def _without_port(text: str) -> str:
    """``192.0.2.7:4711`` and ``[2001:db8::7]:4711`` are written too."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """None for what is none. An IPv4 address stays one when it is written as IPv6."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, IPv6Address) else found
