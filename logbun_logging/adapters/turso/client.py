"""The driver ``libsql-client``: over HTTP, over a WebSocket, and for a file.

Remote databases are spoken to on the process's event loop, the only place where a client is
touched. libsql-client has no time-outs, and a client that has missed an answer is of no use any
more, so no call begins on it after a failure, and the last that uses it closes it. Where it had
worked before, the call is made once more on a new one: a server that was restarted, or a proxy that
has closed an idle connection, costs no failure.
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

__all__ = ["FileDriver", "RemoteDriver"]

#: Codes of libsql-client that say nothing of the statement.
_NO_ANSWER: Final = frozenset(
    {"HRANA_WEBSOCKET_ERROR", "HRANA_PROTO_ERROR", "CLIENT_CLOSED", "STREAM_CLOSED"}
)

#: More statements than these make no single WebSocket message: escaped to ASCII they may grow to
#: three times their size, and the server closes the connection over 16 MiB.
_MAX_STATEMENTS_IN_MESSAGE: Final = 5
_MAX_MESSAGE_BYTES: Final = 16 * 2**20

#: Seconds for the farewell of a client that is thrown away.
_FAREWELL: Final = 5.0

_loop = LoopThread()
_gate = ForkGate()


class _PipelineClient(HttpClient):  # type: ignore[misc]  # libsql-client has no types
    """Speaks version 2 of the protocol: Turso's cloud has no version 1, libsql-client's own."""

    async def batch(self, stmts: Any) -> Any:
        requests = [{"type": "batch", "batch": _batch_to_proto(stmts)}, {"type": "close"}]
        body = msgspec.json.encode({"requests": requests})
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
        if result["type"] == "error":
            raise _error_from_proto(result["error"])
        return _batch_results_from_proto(result["response"]["result"], len(stmts))


async def _chunks(body: bytes) -> AsyncIterator[bytes]:
    """Yield a body in parts: as a whole, aiohttp warns that it may hold up the event loop."""
    for start in range(0, len(body), 65_536):
        yield body[start : start + 65_536]


class RemoteDriver:
    """A database behind ``http``, ``https``, ``ws`` or ``wss``.

    Args:
        endpoint: where it is.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._over_http = endpoint.scheme.startswith("http")
        self._reset()

    def _reset(self) -> None:
        # Both are touched on the loop alone.
        self._current: _Client | None = None
        self._farewells: set[asyncio.Task[None]] = set()

    def run(self, statements: Sequence[Statement], timeout: float) -> list[Rows]:
        """Run all *statements* in one transaction; see :class:`Driver`."""
        try:
            return _loop.run(self._run(statements), timeout)
        except TimeoutError:
            raise NoAnswerError(f"no answer within timeout={timeout:g} s") from None

    def close(self) -> None:
        """Let go of the connection."""
        with suppress(TimeoutError):
            _loop.run(self._close(), _FAREWELL)

    def after_fork(self) -> None:
        """Forget the parent's connection."""
        keep_inherited((self._current, self._farewells))
        self._reset()

    async def _run(self, statements: Sequence[Statement]) -> list[Rows]:
        while True:
            client = self._current = self._current or _Client(self._open())
            again = client.proven
            client.users += 1
            try:
                found = await self._send(client.client, statements)
            except (Exception, asyncio.CancelledError) as error:
                answer = _answer(error)
                if answer is not None:
                    raise answer from None
                if self._current is client:
                    self._current = None
                if _is_cancelled():  # not only what libsql-client has waited for
                    raise
                if not again:
                    if isinstance(error, NoAnswerError):
                        raise
                    raise NoAnswerError(f"{type(error).__name__}: {error}") from error
            else:
                client.proven = True
                return [[row.astuple() for row in result] for result in found]
            finally:
                client.users -= 1
                self._close_unless_used(client)

    def _open(self) -> libsql_client.Client:
        token = self._endpoint.token()
        if self._over_http:
            return _PipelineClient(self._endpoint.url.rstrip("/") + "/", auth_token=token)
        return libsql_client.create_client(self._endpoint.url, auth_token=token)

    async def _send(self, client: libsql_client.Client, statements: Sequence[Statement]) -> Any:
        if self._over_http:
            return await client.batch([*statements])
        for _, values in statements:
            if any(_may_be_too_long(value) for value in values):
                raise StatementError("SQLITE_TOOBIG", "a row is too large for a WebSocket message")
        if len(statements) <= _MAX_STATEMENTS_IN_MESSAGE:
            return await client.batch([*statements])
        transaction = client.transaction()
        try:
            results = [await transaction.execute(statement) for statement in statements]
            await transaction.commit()
        finally:
            transaction.close()
        return results

    def _close_unless_used(self, client: _Client) -> None:
        if client is not self._current and not client.users:
            # Nobody waits for it: with a server that hangs, it takes a while.
            farewell = asyncio.ensure_future(_close(client))
            self._farewells.add(farewell)
            farewell.add_done_callback(self._farewells.discard)

    async def _close(self) -> None:
        client, self._current = self._current, None
        if client is not None:
            self._close_unless_used(client)
        if self._farewells:
            await asyncio.wait(self._farewells)


class _Client:
    """One of libsql-client's clients.

    Attributes:
        users: calls under way.
        proven: a call has been answered.
    """

    def __init__(self, client: libsql_client.Client) -> None:
        self.client = client
        self.users = 0
        self.proven = False


async def _close(client: _Client) -> None:
    with suppress(Exception):
        await asyncio.wait_for(client.client.close(), _FAREWELL)


def _answer(error: BaseException) -> StatementError | None:
    """Return what the database has said; None if it was not the database."""
    if isinstance(error, StatementError):
        return error
    if isinstance(error, libsql_client.LibsqlError) and error.code not in _NO_ANSWER:
        return StatementError(error.code, error.explanation)
    return None


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _may_be_too_long(value: Any) -> bool:
    return isinstance(value, str) and 3 * len(value.encode()) > _MAX_MESSAGE_BYTES


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
