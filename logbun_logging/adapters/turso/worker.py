"""The child of ``turso_process``: runs statements with ``libsql`` until its input ends."""

from __future__ import annotations

import re
import signal
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, BinaryIO, Final

import msgspec

from logbun_logging.adapters.turso.driver import TOO_LARGE_BATCH

__all__ = ["HEADER", "Answer", "Request", "main"]

HEADER: Final = struct.Struct("!Q")

#: Seconds after which the child ends itself although its parent has not: that one was killed.
_ORPHANED_AFTER: Final = 5.0

#: How libsql writes an error of the database into its messages.
_CODE: Final = re.compile(r'message: "(.*)", code: "(\w+)"', re.DOTALL)
_MISSING: Final = re.compile(r"no such (table|column)|no column named")
_CONSTRAINT: Final = re.compile(r"constraint failed", re.IGNORECASE)


class Request(msgspec.Struct, array_like=True):
    """Statements to run in one transaction."""

    url: str
    token: str | None
    timeout: float
    statements: Sequence[tuple[str, Sequence[Any]]]


class Answer(msgspec.Struct, array_like=True):
    """What came of a request.

    Attributes:
        results: the rows of each statement.
        error: code and message, if a statement failed.
        failure: what happened, if there was no answer from the database.
    """

    results: list[list[tuple[Any, ...]]] = []
    error: tuple[str, str] | None = None
    failure: str | None = None


class _Worker:
    def __init__(self) -> None:
        self._connection: Any = None
        self._where: Any = None

    def answer(self, request: Request) -> Answer:
        try:
            connection = self._connect(request)
            return Answer(_run(connection, request.statements))
        except ValueError as error:  # the one class of all of libsql's errors
            self._connection = None
            found = _CODE.search(str(error))
            if found is not None:
                return Answer(error=(found[2], found[1]))
            if "status=413 " in str(error):
                return Answer(error=(TOO_LARGE_BATCH, str(error)))
            if _MISSING.search(str(error)):
                return Answer(error=("SQLITE_ERROR", str(error)))
            if _CONSTRAINT.search(str(error)):
                return Answer(error=("SQLITE_CONSTRAINT", str(error)))
            return Answer(failure=str(error))

    def _connect(self, request: Request) -> Any:
        import libsql  # noqa: PLC0415 - the parent reads this module without having it

        where = (request.url, request.token)
        if self._connection is None or self._where != where:
            self._connection = libsql.connect(
                request.url.removeprefix("file:"),
                auth_token=request.token or "",
                isolation_level=None,
                timeout=request.timeout,
            )
            self._where = where
        return self._connection


def _run(connection: Any, statements: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
    if len(statements) == 1:
        return [_execute(connection, *statements[0])]
    connection.execute("BEGIN")
    try:
        results = [_execute(connection, *statement) for statement in statements]
        connection.execute("COMMIT")
    except ValueError:
        with suppress(ValueError):
            connection.execute("ROLLBACK")
        raise
    return results


def _execute(connection: Any, sql: str, values: Sequence[Any]) -> Any:
    cursor = connection.execute(sql, tuple(values))
    return cursor.fetchall() if cursor.description else []


def main(source: BinaryIO, target: BinaryIO) -> None:
    """Answer requests from *source* until it ends."""
    decode = msgspec.msgpack.Decoder(Request).decode
    encode = msgspec.msgpack.Encoder().encode
    worker = _Worker()
    # By the kernel, not by a handler: while libsql waits, no Python code runs.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    while header := source.read(HEADER.size):
        (size,) = HEADER.unpack(header)
        request = decode(source.read(size))
        signal.setitimer(signal.ITIMER_REAL, request.timeout + _ORPHANED_AFTER)
        data = encode(worker.answer(request))
        signal.setitimer(signal.ITIMER_REAL, 0)
        target.write(HEADER.pack(len(data)) + data)
        target.flush()


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
