"""The drivers: libsql-client over HTTP, and for a file.

A server is spoken to on the process's event loop, and only there is a client touched. libsql-client
has no time-outs. After a failure no call begins on the same client, and the last call that uses it
closes it. If the client had worked before, the call is made once more on a new one: a restarted
server, or an idle connection that a proxy has closed, costs no failure.

libsql-client is pinned to one version, because private parts of it are used.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any, Final

import libsql_client
import msgspec
from libsql_client.hrana.convert import (
    _batch_results_from_proto,
    _batch_to_proto,
    _error_from_proto,
)
from libsql_client.http import HttpClient

from logbun_logging.adapters.base import keep_inherited
from logbun_logging.adapters.forking import ForkGate
from logbun_logging.adapters.turso.driver import (
    TOO_LARGE_BATCH,
    Endpoint,
    NoAnswerError,
    Rows,
    Statement,
    StatementError,
)
from logbun_logging.adapters.turso.loop import LoopThread

__all__ = ["FileDriver", "HttpDriver"]

#: The code of libsql-client for an answer that is not as the protocol has it.
_NO_ANSWER: Final = "HRANA_PROTO_ERROR"

#: The longest that closing a client may take, in seconds.
_LONGEST_CLOSING: Final = 5.0

_loop = LoopThread()
_gate = ForkGate()


class _Client(HttpClient):  # type: ignore[misc]  # libsql-client has no types
    """Speaks version 2 of the protocol: Turso's cloud has no version 1, libsql-client's own.

    Used on the loop alone, so its attributes need no lock.

    Attributes:
        users: calls under way.
        proven: a call has been answered.
    """

    def __init__(self, url: str, token: str | None) -> None:
        super().__init__(url, auth_token=token)
        self.users = 0
        self.proven = False

    async def run(self, statements: Sequence[Statement]) -> list[Rows]:
        """Run all *statements* in one transaction; see :class:`Driver`."""
        batch = {"type": "batch", "batch": _batch_to_proto([*statements])}
        body = msgspec.json.encode({"requests": [batch, {"type": "close"}]})
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        async with self._session.post(
            f"{self._url}v2/pipeline", data=_chunks(body), headers=headers, allow_redirects=False
        ) as response:
            if response.status != 200:
                # Whole, whatever its length: the token in it can be found only before it is cut.
                text = f"HTTP status {response.status}: {await response.text()}"
                if response.status == 413:
                    raise StatementError(TOO_LARGE_BATCH, text)
                raise NoAnswerError(text)
            answer = await response.json()
        result = answer["results"][0]
        try:
            if result["type"] == "error":
                raise _error_from_proto(result["error"])
            found = _batch_results_from_proto(result["response"]["result"], len(statements))
        except libsql_client.LibsqlError as error:
            if error.code == _NO_ANSWER:
                raise NoAnswerError(error.explanation) from None
            raise StatementError(error.code, error.explanation) from None
        return [[row.astuple() for row in rows] for rows in found]


async def _chunks(body: bytes) -> AsyncIterator[bytes]:
    """Yield a body in parts: as a whole, aiohttp warns that it may hold up the event loop."""
    for start in range(0, len(body), 65_536):
        yield body[start : start + 65_536]


class HttpDriver:
    """A database behind ``http`` or ``https``.

    Args:
        endpoint: where it is.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._reset()

    def _reset(self) -> None:
        # Both are used on the loop alone, so they need no lock.
        self._current: _Client | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def run(self, statements: Sequence[Statement], timeout: float) -> list[Rows]:
        """Run all *statements* in one transaction; see :class:`Driver`."""
        try:
            return _loop.run(self._run(statements), timeout)
        except TimeoutError:
            raise NoAnswerError(f"no answer within timeout={timeout:g} s") from None

    def close(self) -> None:
        """Close the connection; the next call makes a new one."""
        with suppress(TimeoutError):
            _loop.run(self._close(), _LONGEST_CLOSING)

    def after_fork(self) -> None:
        """Forget the parent's connection."""
        keep_inherited((self._current, self._closing))
        self._reset()

    async def _run(self, statements: Sequence[Statement]) -> list[Rows]:
        while True:
            client = self._current = self._current or self._open()
            again = client.proven
            client.users += 1
            try:
                rows = await client.run(statements)
            except StatementError:
                raise
            except BaseException as error:  # the cancellation by a time-out among them
                if self._current is client:
                    self._current = None
                if not isinstance(error, Exception):
                    raise
                if not again:
                    kind = "" if isinstance(error, NoAnswerError) else f"{type(error).__name__}: "
                    raise NoAnswerError(f"{kind}{error}") from error
            else:
                client.proven = True
                return rows
            finally:
                client.users -= 1
                self._close_unless_used(client)

    def _open(self) -> _Client:
        return _Client(self._endpoint.url.rstrip("/") + "/", self._endpoint.token())

    def _close_unless_used(self, client: _Client) -> None:
        if client is not self._current and not client.users:
            # No call waits for it: with a server that hangs, it takes a while.
            closing = asyncio.ensure_future(_close(client))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def _close(self) -> None:
        client, self._current = self._current, None
        if client is not None:
            self._close_unless_used(client)
        if self._closing:
            await asyncio.wait(self._closing)


async def _close(client: _Client) -> None:
    with suppress(Exception):
        await asyncio.wait_for(client.close(), _LONGEST_CLOSING)


class FileDriver:
    """A local SQLite file. Each call opens it anew, as libsql-client does.

    Args:
        endpoint: where it is.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._url = endpoint.url

    def run(self, statements: Sequence[Statement], timeout: float) -> list[Rows]:
        """Run all *statements* in one transaction; wait for others that write to the file."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                with _gate.call():
                    return self._run(statements)
            except libsql_client.LibsqlError as error:
                busy = error.code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
                if not busy or time.monotonic() > deadline:
                    raise StatementError(error.code, error.explanation) from None
            time.sleep(0.005)

    def _run(self, statements: Sequence[Statement]) -> list[Rows]:
        client = libsql_client.create_client(self._url)
        _run_here(client.execute("PRAGMA journal_mode = WAL"))  # readers go on while one writes
        found = _run_here(client.batch([*statements]))
        return [[row.astuple() for row in result] for result in found]

    def close(self) -> None:
        """Do nothing: nothing stays open."""

    def after_fork(self) -> None:
        """Do nothing: nothing stays open."""


def _run_here(work: Any) -> Any:
    """Run a coroutine that never waits for anything, as libsql-client's are for a file."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("libsql-client waits for something")
