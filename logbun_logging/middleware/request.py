"""What a request says of itself: the context fields that every middleware binds.

All middlewares speak CGI names here (``HTTP_USER_AGENT``), as WSGI and Django have them and ASGI
headers are easily brought to. Header values are text that stands for bytes one to one (latin-1, as
PEP 3333 has it). The invariant: whatever a client sends, a value that leaves here is short,
printable and has a defined form, or is None; nothing here raises.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any, Final

from logbun_logging.context import AuditContextFields
from logbun_logging.middleware.client_ip import ClientIPRule

__all__ = ["cgi_name", "clean_user_agent", "headers_read", "request_fields", "request_id"]

#: A longer user agent is cut, in bytes of UTF-8.
MAX_USER_AGENT: Final = 512

_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")

# https://www.w3.org/TR/trace-context/ section 3.2: version ff is invalid, as are ids of zeros only;
# version 00 ends after 55 characters, a later one may carry more.
_TRACEPARENT: Final = re.compile(
    r"(?!ff|00.{54})[0-9a-f]{2}"
    r"-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"
)


def headers_read(client_ip: ClientIPRule) -> tuple[str, ...]:
    """Return the names of the headers that :func:`request_fields` reads, in lower case."""
    return ("user-agent", "x-request-id", "traceparent", *client_ip.headers)


def cgi_name(header: str) -> str:
    """Return the name that CGI has for a header."""
    return "HTTP_" + header.upper().replace("-", "_")


def request_fields(
    headers: Mapping[str, Any], peer: str | None, client_ip: ClientIPRule
) -> AuditContextFields:
    """Return address, user agent and request id of a request; None where it does not say.

    Args:
        headers: by CGI name; anything else in it is ignored, so a WSGI ``environ`` will do.
        peer: whom the server talks to.
        client_ip: the rule that chooses the address.
    """
    get = headers.get
    return {
        "ip_address": client_ip(
            peer,
            get("HTTP_X_FORWARDED_FOR", ""),
            get("HTTP_FORWARDED", ""),
            get("HTTP_X_REAL_IP", ""),
        ),
        "user_agent": clean_user_agent(get("HTTP_USER_AGENT", "")),
        "request_id": request_id(get("HTTP_X_REQUEST_ID", ""), get("HTTP_TRACEPARENT", "")),
    }


def clean_user_agent(value: str) -> str | None:
    """Return a user agent that can be stored and shown, or None if it is empty.

    Control characters, and all others that are not printable, become U+FFFD; what is beyond 512
    bytes of UTF-8 is cut off between characters.
    """
    if value.isascii() and value.isprintable() and len(value) <= MAX_USER_AGENT:
        return value or None
    try:
        text = value.encode("latin-1").decode()
    except UnicodeError:
        text = value
    text = "".join(char if char.isprintable() else "\ufffd" for char in text[:MAX_USER_AGENT])
    return text.encode()[:MAX_USER_AGENT].decode(errors="ignore")


def request_id(header: str, traceparent: str) -> str | None:
    """Return what this request is called elsewhere, or None.

    The first of: ``X-Request-ID``, if it is 1 to 128 visible ASCII characters; the trace id of the
    active OpenTelemetry span; the trace id of a valid W3C ``traceparent``. The headers are the
    client's word and good for correlation only.
    """
    if header and _REQUEST_ID.fullmatch(header):
        return header
    return _active_trace_id() or (_trace_id(traceparent) if traceparent else None)


def _active_trace_id() -> str | None:
    # An application that has an active span has imported this; importing it here would make every
    # other one pay.
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    try:
        span = trace.get_current_span().get_span_context()
        return format(span.trace_id, "032x") if span.is_valid else None
    except Exception:  # half imported, or a propagator's own failure: correlation is not worth it
        return None


def _trace_id(traceparent: str) -> str | None:
    match = _TRACEPARENT.fullmatch(traceparent)
    return None if match is None else match["trace"]
