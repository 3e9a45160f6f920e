"""The seam between :class:`TursoAdapter` and what talks to libSQL for it.

The adapter knows tables and statements, a driver knows connections. There are two, one for servers
and one for files, both of them in ``client``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

__all__ = [
    "TOO_LARGE_BATCH",
    "Driver",
    "Endpoint",
    "NoAnswerError",
    "Rows",
    "Statement",
    "StatementError",
]

#: An SQL text and the values of its parameters.
Statement: TypeAlias = tuple[str, Sequence[Any]]

#: What a statement returned.
Rows: TypeAlias = list[tuple[Any, ...]]

#: The code of an error that a server, or a proxy before it, has for the size of a request.
TOO_LARGE_BATCH = "TOO_LARGE_BATCH"


class Endpoint(NamedTuple):
    """Where a database is.

    Attributes:
        url: ``http``, ``https`` or ``file``; without any secret.
        token: returns the token to connect with now; None for none.
    """

    url: str
    token: Callable[[], str | None]

    @property
    def scheme(self) -> str:
        """What the URL starts with."""
        return self.url.partition(":")[0]


class StatementError(Exception):
    """The database's answer to a statement is an error.

    Attributes:
        code: SQLite's name for it or the server's, e.g. ``SQLITE_CONSTRAINT``.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class NoAnswerError(Exception):
    """The database cannot be reached, lets nobody in, or does not answer in time."""


class Driver(Protocol):
    """A connection to one database, made when it is needed and made again when it has broken.

    Called from several threads at a time.
    """

    def run(self, statements: Sequence[Statement], timeout: float) -> list[Rows]:
        """Run all *statements* in one transaction, or none; return within *timeout* seconds.

        They may be run twice, where a connection breaks before the answer comes.

        Raises:
            StatementError: a statement failed.
            NoAnswerError: nobody knows whether they were run.
        """
        ...

    def close(self) -> None:
        """Let go of the connection; the next call makes a new one."""
        ...

    def after_fork(self) -> None:
        """Forget, in a forked child, the parent's connection without closing it."""
        ...
