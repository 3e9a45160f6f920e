"""SQLite, embedded: the default database.

sqlite-utils looks after the schema and reads; the bulk insert is multi-row ``INSERT`` on the same
connection. One connection writes, guarded by a lock; each reading thread has its own. Several
processes may share the file: SQLite's WAL journal lets readers go on while one of them writes.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from logbun_logging.adapters import sql, sql_prune
from logbun_logging.adapters.base import (
    Batch,
    EncodedBatch,
    PruneReport,
    keep_inherited,
)
from logbun_logging.adapters.forking import ForkGate
from logbun_logging.errors import AdapterUnavailableError, ConfigurationError, RejectedEventsError
from logbun_logging.event import AuditEvent
from logbun_logging.files import PRIVATE_FILE
from logbun_logging.query import Filters, Pagination, TenantScope

if TYPE_CHECKING:
    import sqlite_utils

__all__ = ["SQLiteAdapter"]

_gate = ForkGate()

T = TypeVar("T")


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
        # Imported here, on the thread that configures: a background thread's import that a fork
        # interrupts is never finished in the child. It takes 100 ms, so not with the module.
        import sqlite_utils  # noqa: PLC0415

        self._driver = sqlite_utils
        self.path = Path(path).expanduser().absolute()
        self.busy_timeout = busy_timeout
        self._reset()
        _gate.add(self)

    def __repr__(self) -> str:
        return f"SQLiteAdapter(path={str(self.path)!r})"

    def _reset(self) -> None:
        self._write_lock = threading.Lock()
        self._readers_lock = threading.Lock()
        self._writer: sqlite_utils.Database | None = None
        self._idle_readers: list[sqlite_utils.Database] = []
        self._generation = object()
        self._suspended = False  # closed for a fork, to be opened again by the next call

    def exists(self) -> bool:
        """Tell whether the file is there."""
        return self.path.exists()

    def init(self) -> None:
        """Open the file, create or migrate the table and its indexes."""
        with self._errors(), self._write_lock:
            if self._writer is not None:
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # A new file is this user's alone; its journal gets the same permissions from SQLite.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE))
            database = self._connect()
            try:
                _migrate(database)
            except BaseException:
                database.close()
                raise
            self._writer = database

    def bulk_insert(self, tenant_id: str | None, events: Sequence[AuditEvent]) -> bool:
        """Store the events of one tenant in one transaction."""
        return self.bulk_insert_many([(tenant_id, events)])

    def bulk_insert_many(self, batches: Sequence[Batch]) -> bool:
        """Store the batches of several tenants in one transaction.

        Rows of one tenant stay together, so that they meet the same index pages.
        """
        events = [event for _, part in batches for event in part]
        self._insert(events, sql.values_of)
        return True

    def insert_encoded(self, batches: Sequence[EncodedBatch]) -> bool:
        """Store encoded events of several tenants in one transaction."""
        payloads = [payload for _, part in batches for payload in part]
        self._insert(payloads, sql.encoded_values)
        return True

    def _insert(self, items: Sequence[T], values_of: Callable[[Sequence[T]], list[Any]]) -> None:
        step = sql.MAX_ROWS_PER_STATEMENT
        with self._errors(), self._writing() as connection:
            for start in range(0, len(items), step):
                part = items[start : start + step]
                connection.execute(sql.insert_statement(len(part)), values_of(part))

    def query(
        self, tenant_id: TenantScope, filters: Filters, pagination: Pagination
    ) -> list[AuditEvent]:
        """Return one page; see :class:`~logbun_logging.adapters.base.Adapter`."""
        with self._errors(), self._reading() as database:
            return sql.select_page(
                lambda statement, values: database.execute(statement, values).fetchall(),
                tenant_id,
                filters,
                pagination,
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
        return sql_prune.prune(
            self._count, self._remove_step, days, tenants, dry_run=dry_run, now=now
        )

    def _count(self, where: str, values: Sequence[Any]) -> int:
        with self._errors(), self._reading() as database:
            return int(database.execute(sql.count_rows(where), values).fetchone()[0])

    def _remove_step(self, where: str, values: Sequence[Any]) -> sql_prune.Step:
        """Remove one step's rows; finding them needs no write lock."""
        with self._errors(), self._reading() as database:
            statement = sql.expired_rows(where, sql_prune.STEP)
            found = database.execute(statement, values).fetchall()
        if not found:
            return sql_prune.Step(0, None)
        with self._errors(), self._writing() as connection:
            ids = [row[1] for row in found]
            removed = connection.execute(sql.delete_rows(len(ids)), ids).rowcount
        return sql_prune.Step(removed, found[-1] if len(found) == sql_prune.STEP else None)

    def close(self) -> None:
        """Close every connection that is not in use just now; those in use close when done."""
        with _gate.call():
            self._close()

    def _close(self) -> bool:
        """Close the connections; return whether it was open."""
        with self._write_lock, self._readers_lock:
            self._generation = object()
            self._suspended = False
            idle, self._idle_readers = self._idle_readers, []
            writer, self._writer = self._writer, None
            for database in (*idle, *([writer] if writer else ())):
                database.close()
            return writer is not None

    def suspend(self) -> None:
        """Close every connection for a fork; the next call opens them again."""
        before = self._suspended
        self._suspended = self._close() or before

    def after_fork(self) -> None:
        """Forget connections that a fork has carried over because a call of theirs hung."""
        keep_inherited((self._writer, self._idle_readers))
        self._reset()

    def _connect(self) -> sqlite_utils.Database:
        connection = sqlite3.connect(
            self.path,
            timeout=self.busy_timeout,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            _use_wal(connection, self.busy_timeout)
            # With the WAL journal NORMAL can lose the last commits to a power cut, not the file;
            # FULL syncs each commit, and a commit is what the pipeline acknowledges.
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA cache_size = -65536")
            # A larger journal lets pages that many batches touch be written back once.
            connection.execute("PRAGMA wal_autocheckpoint = 8192")
        except BaseException:
            connection.close()
            raise
        return self._driver.Database(connection)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._write_lock:
            if self._writer is None:
                if not self._suspended:
                    raise AdapterUnavailableError(f"{self!r} is not open")
                self._writer = self._connect()
                self._suspended = False
            connection: sqlite3.Connection = self._writer.conn
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _reading(self) -> Iterator[sqlite_utils.Database]:
        with self._readers_lock:
            generation = self._generation
            database = self._idle_readers.pop() if self._idle_readers else None
        if database is None:
            database = self._connect()
        try:
            yield database
        finally:
            with self._readers_lock:
                if generation is self._generation:
                    self._idle_readers.append(database)
                    database = None
            if database is not None:
                database.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Tell the errors of an unusable file from those of unusable rows."""
        try:
            with _gate.call():
                yield
        except (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError) as error:
            raise RejectedEventsError(f"{self!r}: {error}") from error
        except (sqlite3.OperationalError, OSError) as error:
            raise AdapterUnavailableError(f"{self!r}: {error}") from error
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:
                raise
            # The base class itself says that the file is no database, or is damaged.
            raise AdapterUnavailableError(f"{self!r}: {error}") from error


def _use_wal(connection: sqlite3.Connection, timeout: float) -> None:
    """Switch the file to a WAL journal, which others may be doing at the same time.

    Each of them then waits for the other's lock; SQLite sees that and answers "locked" at once,
    without regard to its own time-out.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
        else:
            return


def _migrate(database: sqlite_utils.Database) -> None:
    """Bring the table up to date; several processes may do so at once."""
    connection: sqlite3.Connection = database.conn
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(sql.CREATE_TABLE)
        table = database.table(sql.TABLE)
        present = table.columns_dict
        for name in sql.COLUMNS:
            if name not in present:
                connection.execute(sql.add_column(name))
        if table.pks != ["id"]:
            connection.execute(sql.unique_id())
        for name, what in sql.INDEXES.items():
            connection.execute(f"CREATE INDEX IF NOT EXISTS {name} ON {what}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
