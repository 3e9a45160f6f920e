"""Connections to ClickHouse: a server over HTTP, or chdb, the same engine in this process.

Both lend clickhouse-connect clients for one call at a time.

**chdb.** A process has one engine, with one folder, and a folder has one process. The engine runs
threads from the moment it is imported, which a forked child does not have: there it hangs, even at
the end of the process, if the parent had it open. So it is imported no sooner than it is used,
closed before a fork (:mod:`~logbun_logging.adapters.forking`), opened again by the parent's next
call, and refused in the child.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import parse_qs, urlsplit

from logbun_logging._process.forks import register
from logbun_logging.adapters.base import keep_inherited
from logbun_logging.adapters.forking import ForkGate
from logbun_logging.errors import (
    AdapterUnavailableError,
    BatchTooLargeError,
    ConfigurationError,
)

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

__all__ = ["Connections", "Embedded", "Server"]

#: What chdb says when the process has another folder open.
_OTHER_FOLDER: Final = "already initialized with path"

_CONTENT_TOO_LARGE: Final = 413

_gate = ForkGate()
_engine_is_lost = False


def _note_a_lost_engine() -> None:
    global _engine_is_lost  # noqa: PLW0603 - set once, in a child that has one thread
    _engine_is_lost = _engine_is_lost or "chdb" in sys.modules


register(_note_a_lost_engine)


class Connections(Protocol):
    """Lends clients; safe to call from any thread."""

    #: What is sent is to be compressed by this; None: as it is.
    compression: str | None

    def open(self) -> None:
        """Connect, unless that is done."""
        ...

    def client(self) -> AbstractContextManager[Client]:
        """Lend a client for one call at a time."""
        ...

    def close(self) -> None:
        """Close the clients that nobody uses, the others when they are given back."""
        ...

    def after_fork(self) -> None:
        """Forget, in a forked child, the parent's clients."""
        ...


class Server:
    """One client for all threads: without a ClickHouse session it may be used by several at once.

    Args:
        options: the arguments of ``clickhouse_connect.get_client``.
        timeout: seconds for connecting, and for each answer.
        settings: ClickHouse settings, sent with every request.
    """

    compression: str | None = "lz4"

    def __init__(
        self, options: Mapping[str, Any], *, timeout: float, settings: Mapping[str, Any]
    ) -> None:
        self._options = options
        self._timeout = timeout
        self._settings = settings
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._client: Client | None = None

    def open(self) -> None:
        """Connect and log in."""
        import clickhouse_connect  # noqa: PLC0415 - imported by the adapter's constructor
        from urllib3 import Timeout  # noqa: PLC0415

        with self._lock:
            if self._client is None:
                seconds = max(1, round(self._timeout))
                client: Any = clickhouse_connect.get_client(
                    **self._options,
                    settings=dict(self._settings),
                    connect_timeout=seconds,
                    send_receive_timeout=seconds,
                    # Requests of one session must follow on each other; ours need not.
                    autogenerate_session_id=False,
                    # Closing the shared one would close it under the application's own clients.
                    dedicated_pool=True,
                    autogenerate_query_id=True,  # by which an answer is known
                    compress=self.compression,
                )
                client.timeout = Timeout(connect=self._timeout, read=self._timeout)
                # The client's own pool of connections, which nobody else has.
                client.http.request = _only_clickhouse(client.http.request)
                self._client = client

    @contextmanager
    def client(self) -> Iterator[Client]:
        """Lend the one client."""
        client = self._client
        if client is None:
            raise AdapterUnavailableError("the connection is not open")
        yield client

    def close(self) -> None:
        """Close the client and its sockets; requests under way end."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def after_fork(self) -> None:
        """Forget the parent's sockets without closing them."""
        keep_inherited(self._client)
        self._reset()


def _only_clickhouse(request: Callable[..., Any]) -> Callable[..., Any]:
    """Return *request* so that it takes no success from anybody but ClickHouse.

    A proxy in front of a server that is away answers by itself: with a page of its own and status
    200, with nothing and 204, or by a redirect to a login. The client would take each for success.
    ClickHouse names the query in its answer, and sums up what it did; a proxy that speaks
    ClickHouse may have given the query another name.
    """

    def checked(method: str, url: str, **options: Any) -> Any:
        response = request(method, url, redirect=False, **options)
        headers = response.headers
        (query_id,) = parse_qs(urlsplit(url).query).get("query_id", [""])
        known = headers.get("X-ClickHouse-Query-Id") == query_id
        if response.status == _CONTENT_TOO_LARGE:
            response.close()
            raise BatchTooLargeError("a proxy before ClickHouse takes no body of this size (413)")
        if response.status < 300 and not known and "X-ClickHouse-Summary" not in headers:
            response.close()
            raise AdapterUnavailableError(
                f"status {response.status} came, but not from ClickHouse (its headers are missing)"
            )
        return response

    return checked


class Embedded:
    """A client for each call that is under way: a chdb client does one thing at a time.

    Args:
        path: the engine's folder.
        settings: ClickHouse settings.
    """

    compression: str | None = None

    def __init__(self, path: Path, *, settings: Mapping[str, Any]) -> None:
        self._path = path
        self._settings = settings
        self._reset()
        _gate.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[Client] = []
        self._opened = False
        self._generation = object()

    def open(self) -> None:
        """Start the engine, or join it if another adapter of the same folder has."""
        with _gate.call():
            client = self._connect()
            with self._lock:
                self._opened = True
                self._idle.append(client)

    @contextmanager
    def client(self) -> Iterator[Client]:
        """Lend a client that nobody else has meanwhile."""
        with _gate.call():
            with self._lock:
                if not self._opened:
                    raise AdapterUnavailableError("the engine is not open")
                generation = self._generation
                client = self._idle.pop() if self._idle else None
            if client is None:
                client = self._connect()
            try:
                yield client
            finally:
                with self._lock:
                    keep = generation is self._generation
                    if keep:
                        self._idle.append(client)
                if not keep:
                    client.close()

    def close(self) -> None:
        """Close the clients; with the process's last one the engine ends."""
        with _gate.call():
            with self._lock:
                self._opened = False
            self.suspend()

    def suspend(self) -> None:
        """Close the clients for a fork; the next call opens them again."""
        with self._lock:
            self._generation = object()
            idle, self._idle = self._idle, []
        for client in idle:
            client.close()

    def after_fork(self) -> None:
        """Forget clients that a fork has carried over because a call of theirs hung."""
        keep_inherited(self._idle)
        self._reset()

    def _connect(self) -> Client:
        if _engine_is_lost:
            raise AdapterUnavailableError(
                "this process was forked from one that had chdb loaded, and the engine does not "
                "survive a fork: fork first, or use a ClickHouse server"
            )
        import clickhouse_connect  # noqa: PLC0415 - imported by the adapter's constructor
        from clickhouse_connect.driver.exceptions import ProgrammingError  # noqa: PLC0415

        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            return clickhouse_connect.get_client(
                interface="chdb", path=str(self._path), settings=dict(self._settings)
            )
        except ProgrammingError as error:
            if _OTHER_FOLDER in str(error):
                allowed = "one folder in a process: another adapter has opened a different one"
                raise ConfigurationError("adapter.path", str(self._path), allowed) from error
            raise AdapterUnavailableError(
                f"chdb cannot open its folder, perhaps because another process has it: {error}"
            ) from error
