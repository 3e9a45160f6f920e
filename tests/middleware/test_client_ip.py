"""The client IP rule: the documented table, and what must hold for every header there can be."""

from __future__ import annotations

import re
import time
from ipaddress import IPv4Address, IPv6Network, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logbun_logging.errors import ConfigurationError
from logbun_logging.middleware.client_ip import ClientIPRule, parse_address

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "client-ip.md"


def documented_rows():
    page = DOCS.read_text(encoding="utf-8")
    table = page.partition("<!-- client-ip-table -->")[2].partition("<!-- /client-ip-table -->")[0]
    for line in table.strip().splitlines()[2:]:
        *cells, why = (cell.strip() for cell in line.strip("|").split("|"))
        spans = [re.findall(r"`([^`]*)`", cell) for cell in cells]
        yield pytest.param(spans, id=f"{cells[0]} {why}")


def trusted(text: str):
    if text.isdigit():
        return int(text)
    return text if text == "first-forwarded" else text.split(", ")


@pytest.mark.parametrize("row", list(documented_rows()))
def test_the_documented_table(row):
    proxies, peer, forwarded_for, forwarded, real_ip, chosen = row
    rule = ClientIPRule(trusted(proxies[0]))
    headers = [",".join(lines) for lines in (forwarded_for, forwarded, real_ip)]

    result = rule(None if peer == ["unix"] else peer[0], *headers)

    assert result == (chosen[0] if chosen else None)


def test_the_documented_table_is_found():
    assert len(list(documented_rows())) > 50


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        ("x-forwarded-for", "203.0.113.1"),
        ("FORWARDED", "203.0.113.2"),
        ("x-real-ip", "203.0.113.3"),
    ],
)
def test_a_named_header_is_the_only_one_that_is_read(header, chosen):
    rule = ClientIPRule(1, forwarded_header=header)

    assert rule("10.0.0.1", "203.0.113.1", "for=203.0.113.2", "203.0.113.3") == chosen
    assert (
        ClientIPRule(1)("10.0.0.1", "203.0.113.1", "for=203.0.113.2", "203.0.113.3") == "10.0.0.1"
    )


def test_proxies_may_be_given_as_address_and_network_objects():
    rule = ClientIPRule({IPv4Address("10.0.0.1"), IPv6Network("2001:db8::/32")})

    assert rule("10.0.0.1", "203.0.113.9, 2001:db8::1") == "203.0.113.9"


@pytest.mark.parametrize("peer", [None, ""])
def test_servers_name_a_unix_socket_differently(peer):
    assert ClientIPRule(["unix"])(peer, "203.0.113.9") == "203.0.113.9"


@pytest.mark.parametrize(
    "value",
    [
        -1,
        True,
        1.5,
        None,
        "10.0.0.0/8",
        b"10.0.0.0/8",
        "*",
        ["10.0.0.1/8"],
        ["proxy.example"],
        [""],
        [167772161],
        [None],
        ["0.0.0.0/0"],
        ["::/0"],
    ],
    ids=repr,
)
def test_a_bad_trusted_proxies_is_refused_by_name_with_what_is_allowed(value):
    with pytest.raises(
        ConfigurationError, match=r"^trusted_proxies=.*: allowed is .*CIDR"
    ) as error:
        ClientIPRule(value)

    assert error.value.option == "trusted_proxies"


@pytest.mark.parametrize("value", ["x-client-ip", "", 1], ids=repr)
def test_a_bad_forwarded_header_is_refused(value):
    with pytest.raises(ConfigurationError, match="forwarded_header="):
        ClientIPRule(1, forwarded_header=value)


# -- what holds for every header ---------------------------------------------------------------

#: Characters that mean something somewhere in these headers, and some that mean nothing.
TEXT = st.one_of(
    st.text(st.sampled_from(list('for=FORby;,"\\[]:.%_ \t0123456789abcdef\x00é')), max_size=60),
    st.text(st.characters(max_codepoint=255), max_size=40),
)
LIES = st.one_of(
    TEXT,
    st.sampled_from(
        ["6.6.6.6", "for=6.6.6.6", 'for="[2001:db8::6]:1"', "10.0.0.1", "for=10.0.0.2"]
    ),
)
ADDRESS = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
ATTACKER = ip_address("198.18.0.66")
PROXIES = [ip_address(text) for text in ("10.0.0.1", "10.0.0.2", "10.0.0.3")]


def node(address, style):
    """Write an address the way some proxy writes it."""
    v6 = address.version == 6
    bracketed = f"[{address}]" if v6 else str(address)
    return {"bare": str(address), "bracketed": bracketed, "port": f"{bracketed}:4711"}[style]


@given(TEXT)
def test_parsing_an_address_never_raises_and_gives_a_canonical_one(text):
    result = parse_address(text)

    assert result is None or (str(ip_address(result)) == result and parse_address(result) == result)


@given(ADDRESS, st.sampled_from(["bare", "bracketed", "port"]), st.sampled_from(["", " ", "\t "]))
def test_every_written_form_of_an_address_is_understood(address, style, blank):
    mapped = getattr(address, "ipv4_mapped", None)

    assert parse_address(f"{blank}{node(address, style)}{blank}") == str(mapped or address)


@given(
    st.sampled_from([0, 1, 3, ("10.0.0.0/8",), ("unix",), "first-forwarded"]),
    TEXT,
    TEXT,
    TEXT,
    TEXT,
)
def test_no_header_makes_it_raise(trusted_proxies, peer, forwarded_for, forwarded, real_ip):
    result = ClientIPRule(trusted_proxies)(peer, forwarded_for, forwarded, real_ip)

    assert result is None or str(ip_address(result)) == result


@given(TEXT, TEXT, TEXT, TEXT)
def test_without_trust_only_the_peer_counts(peer, forwarded_for, forwarded, real_ip):
    assert ClientIPRule()(peer, forwarded_for, forwarded, real_ip) == parse_address(peer)


@st.composite
def forged_requests(draw):
    """What arrives from a client that lies, behind proxies that append to one header."""
    header = draw(st.sampled_from(["x-forwarded-for", "forwarded"]))
    proxies = PROXIES[: draw(st.integers(1, 3))]
    client = draw(
        ADDRESS.filter(lambda a: a not in PROXIES and not getattr(a, "ipv4_mapped", None))
    )
    lines = draw(st.lists(LIES, max_size=3))
    for address in [client, *proxies[:-1]]:
        style = draw(st.sampled_from(["bare", "bracketed", "port"]))
        entry = node(address, style)
        if header == "forwarded":
            entry = f'for="{entry}"' if address.version == 6 or style == "port" else f"for={entry}"
            entry += draw(st.sampled_from(["", ";proto=https", ';host="a,for=1.1.1.1;\\"x"']))
        if lines and draw(st.booleans()):
            lines[-1] = f"{lines[-1]}, {entry}"
        else:
            lines.append(entry)
    return header, proxies, client, ",".join(lines), draw(LIES), draw(LIES)


@given(forged_requests(), st.booleans())
def test_what_only_untrusted_hops_say_is_never_believed(request, by_count):
    header, proxies, client, written, other, real_ip = request
    trusted_proxies = len(proxies) if by_count else [str(proxy) for proxy in proxies]
    headers = (written, other) if header == "x-forwarded-for" else (other, written)
    peer = str(proxies[-1])

    careful = ClientIPRule(trusted_proxies, forwarded_header=header)
    default = ClientIPRule(trusted_proxies)

    assert careful(peer, *headers, real_ip) == str(client)
    assert default(peer, *headers, real_ip) in {str(client), peer}


@given(forged_requests())
def test_whoever_goes_around_the_proxies_is_seen(request):
    _, proxies, _, written, other, real_ip = request
    rule = ClientIPRule([str(proxy) for proxy in proxies])

    assert rule(str(ATTACKER), written, other, real_ip) == str(ATTACKER)


@pytest.mark.parametrize(
    "piece",
    ['=""', '"', ",", 'for="', 'for="\\', "for=;", "a=b;", '="","', "[", " ", "%", "10.0.0.1,"],
)
def test_a_huge_hostile_header_takes_no_time(piece):
    header = piece * (65_536 // len(piece))
    rule = ClientIPRule(["10.0.0.0/8"])

    start = time.process_time()
    rule("10.0.0.1", header, header, header)

    assert time.process_time() - start < 0.5


def test_a_header_that_is_too_long_makes_no_other_one_believed():
    rule = ClientIPRule(1)
    long = "203.0.113.9, " * 2000 + "203.0.113.9"

    assert rule("10.0.0.1", "203.0.113.9") == "203.0.113.9"
    assert rule("10.0.0.1", long) == "10.0.0.1"
    assert rule("10.0.0.1", long, "for=6.6.6.6") == "10.0.0.1"


def test_a_chain_of_trusted_hops_is_followed_only_so_far():
    rule = ClientIPRule(["10.0.0.0/8"])

    def chain(hops):
        return ", ".join(["203.0.113.9", *(f"10.1.0.{number}" for number in range(hops))])

    assert rule("10.0.0.1", chain(31)) == "203.0.113.9"
    assert rule("10.0.0.1", chain(32)) == "10.0.0.1"


@pytest.mark.parametrize("network", ["::ffff:10.0.0.0/104", "::ffff:10.0.0.1"])
def test_a_network_of_mapped_addresses_is_the_ipv4_network(network):
    rule = ClientIPRule([network])

    assert rule("10.0.0.1", "203.0.113.9") == "203.0.113.9"
    assert rule("::ffff:10.0.0.1", "203.0.113.9") == "203.0.113.9"
    assert rule("198.51.100.7", "203.0.113.9") == "198.51.100.7"


@pytest.mark.parametrize(
    "networks", [["::ffff:0:0/96"], ["0.0.0.0/1", "128.0.0.0/1"], ["::/1", "8000::/1"]]
)
def test_networks_that_together_trust_everybody_are_refused(networks):
    with pytest.raises(ConfigurationError, match=r"^trusted_proxies="):
        ClientIPRule(networks)


@pytest.mark.parametrize(
    ("trusted_proxies", "header", "read"),
    [
        (0, None, ()),
        (0, "forwarded", ()),
        (1, None, ("x-forwarded-for", "forwarded", "x-real-ip")),
        (["10.0.0.1"], "Forwarded", ("forwarded",)),
        ("first-forwarded", None, ("x-forwarded-for",)),
    ],
)
def test_a_rule_names_the_headers_that_it_reads(trusted_proxies, header, read):
    assert ClientIPRule(trusted_proxies, forwarded_header=header).headers == read
