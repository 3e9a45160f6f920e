"""The client IP rule: which address of a request is worth writing into an audit trail.

Anybody can send ``X-Forwarded-For``. What a header says is believed only as far as trusted proxies
wrote it: each proxy appends the peer that it saw, so headers are read from the right, hop by hop,
and reading stops at the first hop that is not trusted; that hop is the client. Whatever is left of
it is the client's own word and is never looked at. The invariant: the result is the address of a
host that the server or a trusted proxy *saw*, and when there is doubt it is the server's own peer.

:class:`ClientIPRule` is made once per middleware and called once per request; it keeps no state of
requests beyond a bounded cache of parsed addresses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
    ip_address,
    ip_network,
)
from typing import Final, Literal

from logbun_logging.errors import ConfigurationError

__all__ = ["UNREADABLE", "ClientIPRule", "ForwardedHeader", "TrustedProxies", "parse_address"]

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: How many proxies append, or which networks they are in, or the compatibility mode.
TrustedProxies = (
    int | Literal["first-forwarded"] | Iterable[str | IPv4Network | IPv6Network | Address]
)

#: The header that the trusted proxies write.
ForwardedHeader = Literal["x-forwarded-for", "forwarded", "x-real-ip"]

_HEADERS: Final[tuple[ForwardedHeader, ...]] = ("x-forwarded-for", "forwarded", "x-real-ip")

_ALLOWED: Final = (
    "a count of proxies (0 trusts nothing), an iterable of addresses, CIDR networks (not /0) and "
    "'unix', or 'first-forwarded'"
)

#: Longer headers are not read, in characters: no chain of proxies writes as much.
_MAX_HEADER: Final = 16 * 1024

#: Hops that are followed at most, where proxies are known by their networks.
_MAX_HOPS: Final = 32

#: Stands for a header that is too long to read. Its last hop is no address, so it names nobody. It
#: is not taken for an absent one: that would leave another, forged header without contradiction.
UNREADABLE: Final = ","

#: How a dual-stack socket names an IPv4 peer (RFC 4291 section 2.5.5.2).
_MAPPED: Final = IPv6Network("::ffff:0:0/96")

#: The longest form of an address that is worth parsing: brackets, a mapped IPv4, a zone and a port.
_MAX_NODE: Final = 100

# RFC 7239 section 6: a port may be obfuscated, too.
_PORT: Final = r"(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?"
_NODE: Final = re.compile(
    rf"\[(?P<bracketed>[0-9A-Fa-f:.]+)(?:%[^\]\s]+)?\]{_PORT}"
    rf"|(?P<v4>[0-9.]+){_PORT}"
    r"|(?P<v6>[0-9A-Fa-f:.]+)(?:%\S+)?",
    re.ASCII,
)

# RFC 7239 section 4, but unquoted values may hold ":" and "[", which many proxies write.
_PAIR: Final = re.compile(
    r"[ \t]*(?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]+)="
    r'(?:(?P<token>[^\s",;=\\]+)|"(?P<quoted>(?:[^"\\]|\\.)*)")[ \t]*(?:;|$)'
)


@lru_cache(maxsize=1024)
def _parse(text: str) -> Address | None:
    match = _NODE.fullmatch(text)
    if match is None:
        return None
    try:
        address = ip_address(match["bracketed"] or match["v4"] or match["v6"])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _address(text: str) -> Address | None:
    text = text.strip(" \t")
    return _parse(text) if len(text) <= _MAX_NODE else None


def parse_address(text: str) -> str | None:
    """Return the address in *text* in its shortest form, or None if there is none.

    Understands ``192.0.2.1``, ``192.0.2.1:4711``, ``2001:db8::1``, ``[2001:db8::1]`` and
    ``[2001:db8::1]:4711``. A zone id (RFC 4007) means something on one host only and is left out;
    an IPv4 address mapped to IPv6 comes out as IPv4. Host names, ``unknown`` and obfuscated
    identifiers (RFC 7239 section 6) are no addresses. Never raises.

    >>> parse_address("[2001:DB8:0::1]:4711")
    '2001:db8::1'
    """
    address = _address(text)
    return None if address is None else str(address)


class ClientIPRule:
    """Chooses the client's address from the peer and the forwarding headers.

    Args:
        trusted_proxies: an int N says that exactly N proxies stand before the server and each
            appends to the header, whatever their addresses; the client is the N-th entry from the
            right. An iterable names the proxies by address or CIDR network, and ``"unix"`` trusts
            whoever connects through a unix socket. ``"first-forwarded"`` believes the first entry
            of ``X-Forwarded-For``, which any client can forge.
        forwarded_header: the one header that the proxies write; the others are then not read. By
            default all three are, and if they contradict each other none is believed.

    Raises:
        ConfigurationError: an argument is not one of these.
    """

    def __init__(
        self,
        trusted_proxies: TrustedProxies = 0,
        *,
        forwarded_header: ForwardedHeader | None = None,
    ) -> None:
        self._count = 0
        self._networks: tuple[Network, ...] = ()
        self._trusts_unix = False
        self._believes_first = trusted_proxies == "first-forwarded"
        if isinstance(trusted_proxies, int):
            if isinstance(trusted_proxies, bool) or trusted_proxies < 0:
                raise ConfigurationError("trusted_proxies", trusted_proxies, _ALLOWED)
            self._count = trusted_proxies
        elif not self._believes_first:
            self._networks, self._trusts_unix = _parse_proxies(trusted_proxies)
        self._header = _parse_header(forwarded_header)
        self._trusts_nobody = not (
            self._count or self._networks or self._trusts_unix or self._believes_first
        )
        self._is_proxy = lru_cache(maxsize=1024)(self._in_networks)

    @property
    def headers(self) -> tuple[ForwardedHeader, ...]:
        """The headers that the rule reads."""
        if self._trusts_nobody:
            return ()
        if self._believes_first:
            return ("x-forwarded-for",)
        return _HEADERS if self._header is None else (self._header,)

    def __call__(
        self, peer: str | None, forwarded_for: str = "", forwarded: str = "", real_ip: str = ""
    ) -> str | None:
        """Return the client's address, or None if nobody knows it; never raises.

        Args:
            peer: whom the server talks to; None or empty for a unix socket.
            forwarded_for: ``X-Forwarded-For``, its lines joined by commas in their order.
            forwarded: ``Forwarded`` (RFC 7239), joined in the same way.
            real_ip: ``X-Real-IP``.
        """
        seen = _address(peer) if peer else None
        client = None
        if self._believes_first:
            client = _address(forwarded_for[: _MAX_NODE + 1].partition(",")[0])
        elif not self._trusts_nobody and self._trusts_peer(peer, seen):
            client = self._forwarded_client(forwarded_for, forwarded, real_ip)
        chosen = client or seen
        return None if chosen is None else str(chosen)

    def _trusts_peer(self, peer: str | None, seen: Address | None) -> bool:
        if self._count:
            return True
        return self._trusts_unix if not peer else self._is_proxy(seen)

    def _in_networks(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)

    def _forwarded_client(self, forwarded_for: str, forwarded: str, real_ip: str) -> Address | None:
        if self._header is not None:
            forwarded_for = forwarded_for if self._header == "x-forwarded-for" else ""
            forwarded = forwarded if self._header == "forwarded" else ""
            real_ip = real_ip if self._header == "x-real-ip" else ""
        if max(len(forwarded_for), len(forwarded), len(real_ip)) > _MAX_HEADER:
            return None
        routes = []
        if forwarded_for.strip():
            routes.append(self._route(map(_address, reversed(forwarded_for.split(",")))))
        if forwarded.strip():
            routes.append(self._route(map(_forwarded_for, _elements_from_right(forwarded))))
        if real_ip.strip():
            hop = _address(real_ip)
            if not routes:
                routes.append(self._route(iter([hop])))
            elif hop is None or any(hop not in route for route in routes):
                # A proxy writes here the peer that it saw: the client, or the proxy before it. An
                # address that is not on the way was forged, in this header or in the other.
                return None
        clients = {route[-1] for route in routes}
        return clients.pop() if len(clients) == 1 else None

    def _route(self, hops: Iterator[Address | None]) -> list[Address | None]:
        """Return the hops from the server outwards; the last is the client, None if uncertain."""
        route: list[Address | None] = []
        for hop in hops:
            route.append(hop)
            if len(route) == self._count or not (self._count or self._is_proxy(hop)):
                return route
            if len(route) == _MAX_HOPS and not self._count:
                return [None]
        # The end of the list: with a count it is too short to be trusted; with networks everybody
        # in it is trusted, and so is what the first of them says of its peer.
        return [None] if self._count else route


def _parse_proxies(
    trusted_proxies: Iterable[str | IPv4Network | IPv6Network | Address],
) -> tuple[tuple[Network, ...], bool]:
    if isinstance(trusted_proxies, str | bytes) or not isinstance(trusted_proxies, Iterable):
        raise ConfigurationError("trusted_proxies", trusted_proxies, _ALLOWED)
    networks = []
    trusts_unix = False
    for proxy in trusted_proxies:
        if proxy == "unix":
            trusts_unix = True
            continue
        try:
            # An int would be taken for an address.
            network = None if isinstance(proxy, int | bytes) else ip_network(proxy)
        except (TypeError, ValueError) as error:
            raise ConfigurationError("trusted_proxies", proxy, _ALLOWED) from error
        if network is None:
            raise ConfigurationError("trusted_proxies", proxy, _ALLOWED)
        networks.append(_unmapped(network))
    merged: list[Network] = [
        *collapse_addresses(one for one in networks if isinstance(one, IPv4Network)),
        *collapse_addresses(one for one in networks if isinstance(one, IPv6Network)),
    ]
    # Trusting everybody is trusting what everybody claims.
    if any(network.prefixlen == 0 for network in merged):
        raise ConfigurationError("trusted_proxies", trusted_proxies, _ALLOWED)
    return tuple(merged), trusts_unix


def _unmapped(network: Network) -> Network:
    """Return a network of mapped IPv4 addresses as what it is: addresses are unmapped, too."""
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        first = int(network.network_address) & 0xFFFFFFFF
        return IPv4Network((first, network.prefixlen - _MAPPED.prefixlen))
    return network


def _parse_header(forwarded_header: ForwardedHeader | None) -> ForwardedHeader | None:
    if forwarded_header is None:
        return None
    for name in _HEADERS:
        if isinstance(forwarded_header, str) and forwarded_header.lower() == name:
            return name
    raise ConfigurationError("forwarded_header", forwarded_header, f"one of {_HEADERS}, or None")


def _elements_from_right(header: str) -> Iterator[str]:
    """Split a ``Forwarded`` header at the commas outside quotes, last element first.

    From the right, because the right end was written by trusted proxies: an unbalanced quote in
    what a client sent cannot change how their part is read. An opening quote always follows ``=``
    and a quote inside a quoted string always follows a backslash (RFC 9110 section 5.6.4), so
    ``="`` marks the opening one. Takes linear time.
    """
    end = position = len(header)
    comma = header.rfind(",")
    while True:
        quote = header.rfind('"', comma + 1, position)
        if quote < 0:
            yield header[comma + 1 : end]
            if comma < 0:
                return
            end = position = comma
            comma = header.rfind(",", 0, end)
            continue
        position = header.rfind('="', 0, quote)
        if position < 0:
            yield ""  # unbalanced: this element and all before it cannot be read
            return
        if position < comma:
            comma = header.rfind(",", 0, position)


def _forwarded_for(element: str) -> Address | None:
    """Return the address in the ``for`` parameter of one well-formed ``Forwarded`` element."""
    position, node = 0, None
    while position < len(element):
        pair = _PAIR.match(element, position)
        if pair is None:
            return None
        if pair["name"].lower() == "for":
            if node is not None:  # RFC 7239 section 4: once per element
                return None
            node = pair["token"] or pair["quoted"] or ""
        position = pair.end()
    return None if node is None else _address(node)
