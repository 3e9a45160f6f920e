from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from logbun_logging.middleware.client_ip import ClientIPRule
from logbun_logging.middleware.request import clean_user_agent, request_fields, request_id

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"

HEADER = st.text(st.characters(max_codepoint=255), max_size=700)


@pytest.mark.parametrize(
    ("value", "clean"),
    [
        ("", None),
        ("curl/8.5.0", "curl/8.5.0"),
        ("a\x00b\x1b[31m\x7f\r\nc", "a\ufffdb\ufffd[31m\ufffd\ufffd\ufffdc"),
        ("Gerät/1".encode().decode("latin-1"), "Gerät/1"),
        ("Ger\xe4t/1", "Gerät/1"),
        ("safe\u202eexe".encode().decode("latin-1"), "safe\ufffdexe"),
        ("x" * 512, "x" * 512),
        ("x" * 513, "x" * 512),
        (("x" * 511 + "é").encode().decode("latin-1"), "x" * 511),
        (("x" * 510 + "é" + "y").encode().decode("latin-1"), "x" * 510 + "é"),
        ("\ud800", "\ufffd"),
    ],
)
def test_a_user_agent_is_bounded_and_cleaned(value, clean):
    assert clean_user_agent(value) == clean


@given(HEADER)
def test_every_user_agent_becomes_short_and_printable(value):
    clean = clean_user_agent(value)

    assert clean is None or (clean.isprintable() and 0 < len(clean.encode()) <= 512)


@pytest.mark.parametrize(
    "header", ["7b1c", "a" * 128, "req/2026-01-01;n=1", "01J9Z3K8QF", "{123e4567-e89b}"]
)
def test_a_request_id_is_taken_from_its_header(header):
    assert request_id(header, f"00-{TRACE}-{PARENT}-01") == header


@pytest.mark.parametrize("header", ["", "a" * 129, "two words", "a\nb", "a\x00", "é", "\t"])
def test_an_unusable_request_id_gives_way_to_the_trace(header):
    assert request_id(header, f"00-{TRACE}-{PARENT}-01") == TRACE
    assert request_id(header, "") is None


@pytest.mark.parametrize(
    ("traceparent", "valid"),
    [
        (f"00-{TRACE}-{PARENT}-01", True),
        (f"00-{TRACE}-{PARENT}-00", True),
        (f"cc-{TRACE}-{PARENT}-01", True),
        (f"cc-{TRACE}-{PARENT}-01-what-the-future-brings", True),
        (f"cc-{TRACE}-{PARENT}-01what", False),
        (f"00-{TRACE}-{PARENT}-01-more", False),
        (f"ff-{TRACE}-{PARENT}-01", False),
        (f"00-{'0' * 32}-{PARENT}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE.upper()}-{PARENT}-01", False),
        (f"00-{TRACE[1:]}-{PARENT}-01", False),
        (f"00-{TRACE}-{PARENT}", False),
        (f"00-{TRACE}-{PARENT}-01,00-{TRACE}-{PARENT}-01", False),
        ("garbage", False),
    ],
)
def test_a_traceparent_is_read_as_w3c_has_it(traceparent, valid):
    assert request_id("", traceparent) == (TRACE if valid else None)


def test_the_active_span_wins_over_the_traceparent_of_the_client():
    with TracerProvider().get_tracer("t").start_as_current_span("request") as span:
        trace_id = format(span.get_span_context().trace_id, "032x")

        assert request_id("", f"00-{TRACE}-{PARENT}-01") == trace_id
        assert request_id("given", "") == "given"
    assert not trace.get_current_span().get_span_context().is_valid
    assert request_id("", "") is None


def test_a_half_imported_opentelemetry_is_no_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", object())

    assert request_id("", f"00-{TRACE}-{PARENT}-01") == TRACE


def test_nothing_is_imported_for_the_middlewares_but_what_they_are_made_of():
    script = (
        "import sys, logbun_logging.middleware as m\n"
        "list(m.AuditWSGIMiddleware(lambda e, s: [b''])({'REMOTE_ADDR': '::1'}, None))\n"
        "print([n for n in ('opentelemetry', 'asgiref', 'starlette', 'flask', 'werkzeug', 'django')"
        " if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout.strip() == "[]"


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "HTTP_USER_AGENT",
                "HTTP_X_REQUEST_ID",
                "HTTP_TRACEPARENT",
                "HTTP_X_FORWARDED_FOR",
                "HTTP_FORWARDED",
                "HTTP_X_REAL_IP",
            ]
        ),
        HEADER,
    ),
    st.none() | HEADER,
    st.sampled_from([0, 1, 2, "first-forwarded"]),
)
def test_no_request_makes_it_raise(headers, peer, trusted_proxies):
    fields = request_fields(headers, peer, ClientIPRule(trusted_proxies))

    assert fields.keys() == {"ip_address", "user_agent", "request_id"}
    assert all(value is None or value.isprintable() for value in fields.values())
