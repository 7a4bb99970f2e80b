"""Where webhooks may go. A partner names the address, so it must not lead into our own network.

The URL and what its name stands for are checked when an endpoint is added; the address that is really connected to is
checked again at every connection, as a name may stand for something else by then.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from ipaddress import IPv4Address, IPv6Address

from yarl import URL

from kserve.errors import InputError

URL_CHARACTERS = 2000

METADATA = {
    ipaddress.ip_address(text)
    for texts in (
        ("169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254", "fd00:ec2::23"),
        ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd20:ce::254"),
    )
    for text in texts
}
"""Where clouds tell machines their secrets. Never a webhook, not even where private addresses are allowed."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SPECIAL = {
    "a relay of 6to4": ("192.88.99.0/24", "2002::/16"),
    "an address of Teredo": ("2001::/32",),
    "reserved": ("192.0.0.0/24", "198.18.0.0/15", "240.0.0.0/4", "2001::/23", "3fff::/20"),
    "an example": ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32"),
    "shared by a carrier": ("100.64.0.0/10",),
    "of this network": ("0.0.0.0/8",),
    "mapped from IPv4": ("::ffff:0:0/96",),
    "private": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"),
}
_NETWORKS = [(ipaddress.ip_network(text), why) for why, texts in _SPECIAL.items() for text in texts]
_GLOBAL = ipaddress.ip_network("2000::/3")
"""The IPv6 addresses that belong to the internet; everything else is something special."""

AddressInfo = tuple[int, int, int, str, tuple[object, ...]]
"""Family, type, protocol, canonical name and address of a socket, as of getaddrinfo."""


def objection(text: str, private: bool) -> str | None:
    """Why no webhook may go to an IP address, in words; None when it may. ``private``: our own network is allowed."""
    address = ipaddress.ip_address(text.partition("%")[0])
    translated = _embedded(address) if address in _NAT64 else None
    if not METADATA.isdisjoint({address, _embedded(address)}):
        return f"{address} is where a cloud keeps its secrets"
    why = None if private else _special(translated or address)
    return f"{address} is {why}" if why else None


def _embedded(address: IPv4Address | IPv6Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 one stands for."""
    if not isinstance(address, IPv6Address):
        return None
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def _special(address: IPv4Address | IPv6Address) -> str | None:
    """What an address is if it is none of the internet."""
    for name in ("unspecified", "loopback", "link_local", "multicast"):
        if getattr(address, f"is_{name}"):
            return name.replace("_", "-")
    for network, why in _NETWORKS:
        if address in network:
            return why
    if isinstance(address, IPv6Address) and address not in _GLOBAL:
        return "not of the internet"
    return None if address.is_global else "not of the internet"


def check_url(url: str, private: bool) -> str:
    """The URL of an endpoint, if webhooks may go there: https, and http too where private addresses are allowed.

    Looks the name up. Raises InputError that says what is wrong.
    """
    parsed = _parsed(url)
    schemes = ("https", "http") if private else ("https",)
    if parsed.scheme not in schemes:
        raise InputError(f"{url}: webhooks go to {' and '.join(schemes)} only", remedy="name an https address")
    if parsed.user is not None or parsed.password is not None:
        raise InputError(f"{parsed.host}: a URL with a password shows it to everyone", remedy="leave it out")
    assert parsed.host is not None
    for address in _addresses(parsed.host, parsed.port or 443):
        refused = objection(address, private)
        if refused:
            remedy = None if private else "the setting webhook_private allows private addresses"
            raise InputError(f"{parsed.host}: no webhook may go there: {refused}", remedy=remedy)
    return str(parsed.with_fragment(None))


def _parsed(url: str) -> URL:
    if len(url) > URL_CHARACTERS or not url.isprintable() or " " in url:
        raise InputError("that is no URL", remedy=f"at most {URL_CHARACTERS} characters, none of them a space")
    try:
        parsed = URL(url)
        if not parsed.host or not parsed.port:
            raise ValueError("it names no host")
    except ValueError as error:
        raise InputError(f"{url} is no URL: {error}", remedy="such as https://partner.example/hook") from None
    return parsed


def _addresses(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{host} cannot be looked up: {reason}", remedy="check the name, and try again") from None
    return [str(address[0]) for *_, address in found]


class Guard:
    """Makes the sockets of the deliverer: none to an address that no webhook may go to. Raises OSError."""

    def __init__(self, private: bool) -> None:
        self._private = private

    def __call__(self, target: AddressInfo) -> socket.socket:
        family, kind, protocol, _, address = target
        refused = objection(str(address[0]), self._private)
        if refused:
            raise OSError(errno.EACCES, f"no webhook may go there: {refused}")
        return socket.socket(family, kind, protocol)
