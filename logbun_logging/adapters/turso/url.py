"""What a user may write to say where a libSQL database is, and with which token.

The adapter calls it once, when it is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from logbun_logging.errors import ConfigurationError

__all__ = ["Token", "only_token", "parse_url"]

Token = str | Callable[[], str] | None

_SCHEMES: Final = ("libsql", "http", "https", "file")

#: WebSockets, which libsql-client speaks as well: to the scheme that reaches the same server.
_WEBSOCKETS: Final = {"ws": "http", "wss": "https"}
_TLS: Final = {("0", "libsql"), ("1", "libsql")}


def parse_url(url: str) -> tuple[str, str | None]:
    """Return the URL to connect to, without its query, and the token in that."""
    allowed = f"a URL that starts with {', '.join(f'{scheme}:' for scheme in _SCHEMES)}"
    if not isinstance(url, str):
        raise ConfigurationError("adapter.url", url, allowed)
    try:
        parts = urlsplit(url)
        query = dict(
            parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        )
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ConfigurationError("adapter.url", url, allowed) from None
    if parts.scheme == "file":
        if not parts.path or parts.netloc or query or parts.fragment:
            raise ConfigurationError("adapter.url", url, "file:path, file:/path or file:///path")
        return f"file:{parts.path}", None
    if parts.scheme in _WEBSOCKETS:
        allowed = (
            f"the same address as {_WEBSOCKETS[parts.scheme]}://…, which the server serves too"
        )
        problem = "WebSockets are no longer supported"
        raise ConfigurationError("adapter.url", url, allowed, problem=problem)
    if parts.scheme not in _SCHEMES:
        raise ConfigurationError("adapter.url", url, allowed)
    if not host or parts.username is not None or parts.fragment:
        raise ConfigurationError("adapter.url", url, f"{parts.scheme}://host, or with a port")
    tls = query.pop("tls", None)
    tokens = {query.pop(name) for name in ("auth_token", "authToken") if name in query}
    if query or len(tokens) > 1 or (tls is not None and (tls, parts.scheme) not in _TLS):
        known = "auth_token=… alone, with tls=0 or tls=1 for libsql://"
        raise ConfigurationError("adapter.url", url, f"a query with {known}")
    scheme = parts.scheme
    if scheme == "libsql":
        scheme = "http" if tls == "0" else "https"
    return f"{scheme}://{parts.netloc}{parts.path}", next(iter(tokens), None) or None


def only_token(in_url: str | None, given: Token) -> Token:
    """Return the token of the URL or the one that is *given*; both at once are refused."""
    if given is not None and not callable(given) and (not isinstance(given, str) or not given):
        raise ConfigurationError("adapter.auth_token", "***", "a text, a callable, or None")
    if in_url is not None and given is not None:
        raise ConfigurationError("adapter.auth_token", "***", "given once: it is in url as well")
    return in_url if given is None else given
