"""SQLite, embedded: the default database.

Rows go in by multi-row ``INSERT``. One connection writes, guarded by a lock; each reading thread
has its own (``sqlite_connections``). Several processes may share the file: SQLite's WAL journal
lets readers go on while one of them writes. sqlite-utils looks after the schema
(``sqlite_schema``).
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from logbun_logging.adapters._sql import prune as pruning
from logbun_logging.adapters._sql import table
from logbun_logging.adapters._sql.select import select_page
from logbun_logging.adapters.base import Batch, EncodedBatch, PruneReport
from logbun_logging.adapters.forking import ForkGate
from logbun_logging.adapters.sqlite.connections import Connections
from logbun_logging.errors import (
    AdapterUnavailableError,
    BusyError,
    ConfigurationError,
    RejectedEventsError,
)
from logbun_logging.event import AuditEvent
from logbun_logging.query import Filters, Pagination, TenantScope

__all__ = ["SQLiteAdapter"]

_gate = ForkGate()

#: How long SQLite itself waits for another process that writes, in seconds: so long a fork waits.
_BUSY_STEP: Final = 0.1

T = TypeVar("T")

#: Errors of a file that is not as it was when it was opened: to open it anew may mend it.
_CHANGED_FILE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR)


class SQLiteAdapter:
    """Keeps audit events in a SQLite file.

    Args:
        path: the file; its folder is made when it is missing. ``":memory:"`` is not supported:
            an audit log that ends with the process is none.
        busy_timeout: seconds to wait for another process that writes.

    Raises:
        ConfigurationError: an argument is not as described.
    """

    def __init__(self, path: str | os.PathLike[str], *, busy_timeout: float = 5.0) -> None:
        text = str(path) if isinstance(path, str | os.PathLike) else ""
        if text in {"", ":memory:"} or "\0" in text:
            raise ConfigurationError("adapter.path", path, "the path of a file")
        if isinstance(busy_timeout, bool) or not isinstance(busy_timeout, int | float):
            raise ConfigurationError("adapter.busy_timeout", busy_timeout, "a number of seconds")
        self.path = Path(path).expanduser().absolute()
        self.busy_timeout = busy_timeout
        self._connections = Connections(self.path, min(busy_timeout, _BUSY_STEP))
        _gate.add(self._connections)

    def __repr__(self) -> str:
        return f"SQLiteAdapter(path={str(self.path)!r})"

    @property
    def identity(self) -> str:
        """What names the database, in every process."""
        return f"sqlite:{self.path}"

    def exists(self) -> bool:
        """Tell whether the file is there."""
        return self.path.exists()

    def init(self) -> None:
        """Open the file, create or migrate the table and its indexes."""
        self._patiently(self._connections.open)

    def bulk_insert(self, tenant_id: str | None, events: Sequence[AuditEvent]) -> bool:
        """Store the events of one tenant in one transaction."""
        return self.bulk_insert_many([(tenant_id, events)])

    def bulk_insert_many(self, batches: Sequence[Batch]) -> bool:
        """Store the batches of several tenants in one transaction.

        Rows of one tenant stay together, so that they meet the same index pages.
        """
        events = [event for _, part in batches for event in part]
        self._insert(events, table.values_of)
        return True

    def insert_encoded(self, batches: Sequence[EncodedBatch]) -> bool:
        """Store encoded events of several tenants in one transaction."""
        payloads = [payload for _, part in batches for payload in part]
        self._insert(payloads, table.encoded_values)
        return True

    def _insert(self, items: Sequence[T], values_of: Callable[[Sequence[T]], list[Any]]) -> None:
        step = table.MAX_ROWS_PER_STATEMENT

        def insert(connection: sqlite3.Connection) -> None:
            for start in range(0, len(items), step):
                part = items[start : start + step]
                connection.execute(table.insert_statement(len(part)), values_of(part))

        self._write(insert)

    def query(
        self, tenant_id: TenantScope, filters: Filters, pagination: Pagination
    ) -> list[AuditEvent]:
        """Return one page; see :class:`~logbun_logging.adapters.base.Adapter`."""
        return self._read(
            lambda connection: select_page(
                partial(_fetch, connection), tenant_id, filters, pagination
            )
        )

    def prune(
        self,
        days: int | None,
        *,
        tenants: Mapping[str, int] | None = None,
        dry_run: bool = False,
        now: datetime | None = None,
    ) -> PruneReport:
        """Delete old rows in the order of the time index, a bounded number in each transaction."""
        return pruning.prune(
            self._count, self._remove_step, days, tenants, dry_run=dry_run, now=now
        )

    def _count(self, where: str, values: Sequence[Any]) -> int:
        statement = pruning.count_rows(where)
        return int(self._read(lambda reader: reader.execute(statement, values).fetchone()[0]))

    def _remove_step(self, where: str, values: Sequence[Any]) -> pruning.Step:
        """Remove one step's rows; finding them needs no write lock."""
        statement = pruning.expired_rows(where, pruning.STEP)
        found = self._read(lambda reader: reader.execute(statement, values).fetchall())
        if not found:
            return pruning.Step(0, None)
        ids = [row[1] for row in found]
        delete = pruning.delete_rows(len(ids))
        removed = self._write(lambda writer: writer.execute(delete, ids).rowcount)
        return pruning.Step(removed, found[-1] if len(found) == pruning.STEP else None)

    def close(self) -> None:
        """Close every connection that is not in use just now; those in use close when done."""
        with _gate.call():
            self._connections.close()

    def after_fork(self) -> None:
        """Forget connections that a fork has carried over because a call of theirs hung."""
        self._connections.after_fork()

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return self._run(self._connections.writing, work)

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return self._run(self._connections.reading, work)

    def _run(
        self,
        lend: Callable[[], AbstractContextManager[sqlite3.Connection]],
        work: Callable[[sqlite3.Connection], T],
    ) -> T:
        """Return what *work* makes of a connection.

        A file that was cut off and a table that was dropped are made anew for the next call; this
        one fails, so that somebody hears of it.
        """

        def attempt() -> T:
            try:
                with lend() as connection:
                    return work(connection)
            except sqlite3.DatabaseError as error:
                if not _may_be_mended(error):
                    raise
                self._connections.reopen()
                text = f"{self!r}: {error}: file and table were opened anew, or made if missing"
                raise AdapterUnavailableError(text) from error

        return self._patiently(attempt)

    def _patiently(self, attempt: Callable[[], T]) -> T:
        """Try until others let go of the file, up to ``busy_timeout``.

        Between the attempts the process may fork.
        """
        deadline = time.monotonic() + self.busy_timeout
        while True:
            try:
                with self._errors():
                    return attempt()
            except BusyError:
                if time.monotonic() >= deadline:
                    raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Tell the errors of an unusable file from those of unusable rows."""
        try:
            with _gate.call():
                yield
        except (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError) as error:
            raise RejectedEventsError(f"{self!r}: {error}") from error
        except (sqlite3.OperationalError, OSError) as error:
            if _code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
                raise BusyError(f"{self!r}: {error}") from error
            raise AdapterUnavailableError(f"{self!r}: {error}") from error
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:
                raise
            # The base class itself says that the file is no database, or is damaged.
            raise AdapterUnavailableError(f"{self!r}: {error}") from error


def _fetch(connection: sqlite3.Connection, statement: str, values: Sequence[Any]) -> list[Any]:
    """Return the rows of a statement, also where somebody has written text that is not UTF-8."""
    try:
        return connection.execute(statement, values).fetchall()
    except sqlite3.OperationalError as error:
        if "decode to UTF-8" not in str(error):
            raise
    connection.text_factory = partial(str, encoding="utf-8", errors="replace")
    try:
        return connection.execute(statement, values).fetchall()
    finally:
        connection.text_factory = str


def _may_be_mended(error: sqlite3.DatabaseError) -> bool:
    """Tell whether the file or its table is not as it was made."""
    return _code(error) in _CHANGED_FILE or table.lacks_something(str(error))


def _code(error: BaseException) -> int:
    """Return SQLite's primary code of an error, 0 if it has none."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF
