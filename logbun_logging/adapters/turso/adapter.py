"""Turso and libSQL servers: SQLite at the other end of a network.

Rows go in as one JSON parameter for each megabyte (``INSERT_JSON``), the batches of all tenants in
one transaction. The connection and its time-outs are a driver's business (``driver``, ``client``).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace

from logbun_logging._encoding.messages import masked
from logbun_logging._storage.files import PRIVATE_FILE
from logbun_logging.adapters._sql import prune as pruning
from logbun_logging.adapters._sql import table
from logbun_logging.adapters._sql.select import select_page
from logbun_logging.adapters.base import Batch, EncodedBatch, PruneReport
from logbun_logging.adapters.cleartext import warn_of_cleartext
from logbun_logging.adapters.turso.driver import (
    TOO_LARGE_BATCH,
    Driver,
    Endpoint,
    NoAnswerError,
    Rows,
    Statement,
    StatementError,
)
from logbun_logging.adapters.turso.url import Token, only_token, parse_url
from logbun_logging.errors import (
    AdapterUnavailableError,
    BatchTooLargeError,
    ConfigurationError,
    RejectedEventsError,
)
from logbun_logging.event import AuditEvent
from logbun_logging.query import Filters, Pagination, TenantScope

__all__ = ["TursoAdapter"]

DriverName = Literal["libsql-client"]

#: What the server says to a query whose rows are more than it sends in one answer.
_TOO_LARGE: Final = "RESPONSE_TOO_LARGE"

#: Answers that speak of the rows; all others (full, busy, no such table) of the database.
_REFUSALS: Final = ("SQLITE_CONSTRAINT", "SQLITE_MISMATCH", "SQLITE_TOOBIG", "ARGS_INVALID")

#: The values of one statement stay below this many bytes, unless a single row is larger. The server
#: takes values of up to 10 MB.
_MAX_STATEMENT_BYTES: Final = 1_000_000

#: A server's answer is cut, in characters: a refusal may repeat whole rows.
_LONGEST_ERROR: Final = 300

_encode = msgspec.json.Encoder().encode


class TursoAdapter:
    """Keeps audit events in a libSQL database: Turso's cloud, a server of your own, or a file.

    Args:
        url: ``libsql://host`` or ``https://host`` (TLS), ``http://host:8080``, or ``file:path``.
            May carry ``?auth_token=`` (or ``authToken``, as Turso's own tools write it), and
            ``?tls=0`` with ``libsql://``.
        auth_token: the database's token, or a callable that returns the one that holds now, which
            is asked at each new connection.
        timeout: seconds for each call of the database.
        driver: ``"libsql-client"``, the only one.

    Raises:
        ConfigurationError: an argument is not as described, or the driver is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        auth_token: Token = None,
        timeout: float = 20.0,
        driver: DriverName = "libsql-client",
    ) -> None:
        if driver != "libsql-client":
            problem = "this driver is no longer supported" if driver == "libsql" else ""
            allowed = "'libsql-client', which is the default and serves every URL"
            raise ConfigurationError("adapter.driver", driver, allowed, problem=problem)
        number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
        if not number or not 0.05 <= timeout <= 3600:
            raise ConfigurationError("adapter.timeout", timeout, "a number from 0.05 to 3600")
        self.url, token = parse_url(url)
        self._token = only_token(token, auth_token)
        self._shown_to_server: str | None = None
        host = urlsplit(self.url).hostname
        if self._token is not None and host and self.url.startswith("http:"):
            warn_of_cleartext(host, "use https://")
        self.timeout = timeout
        self.driver = driver
        self._driver = _open_driver(Endpoint(self.url, self._current_token))
        self._writing = threading.Lock()

    def __repr__(self) -> str:
        return f"TursoAdapter(url={self.url!r}, driver={self.driver!r})"

    @property
    def identity(self) -> str:
        """What names the database, in every process."""
        return f"libsql:{self.url}"

    def exists(self) -> bool:
        """Tell whether the file is there; True of a database that a server keeps."""
        return not self.url.startswith("file:") or Path(self.url.removeprefix("file:")).exists()

    def init(self) -> None:
        """Create or migrate the table and its indexes; several processes may do so at once."""
        columns = f"SELECT name, pk FROM pragma_table_info('{table.TABLE}')"
        self._make_private_file()
        for _ in range(3):
            with self._errors():
                found = self._write([(table.CREATE_TABLE, ()), (columns, ())])
                try:
                    self._write(_migration(found[1]))
                except StatementError as error:
                    if "duplicate column" not in str(error):
                        raise
                    # Another process was faster: look again.
                else:
                    return
        raise AdapterUnavailableError(f"{self!r}: the table changes all the time")

    def _make_private_file(self) -> None:
        """Make the file of a ``file:`` URL if it is missing: others may read the driver's own."""
        if self.url.startswith("file:"):
            path = Path(self.url.removeprefix("file:"))
            with suppress(OSError):  # which the driver meets as well, and says
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE))

    def bulk_insert(self, tenant_id: str | None, events: Sequence[AuditEvent]) -> bool:
        """Store the events of one tenant in one transaction."""
        return self.bulk_insert_many([(tenant_id, events)])

    def bulk_insert_many(self, batches: Sequence[Batch]) -> bool:
        """Store the batches of several tenants in one transaction."""
        self._insert([_encode(table.to_row(event)) for _, events in batches for event in events])
        return True

    def insert_encoded(self, batches: Sequence[EncodedBatch]) -> bool:
        """Store encoded events of several tenants in one transaction."""
        payloads = [payload for _, part in batches for payload in part]
        self._insert([_encode(table.encoded_values([payload])) for payload in payloads])
        return True

    def _insert(self, rows: Sequence[bytes]) -> None:
        if rows:
            statements = [*_inserts(rows)]
            with self._errors():
                self._with_table(partial(self._write, statements))

    def query(
        self, tenant_id: TenantScope, filters: Filters, pagination: Pagination
    ) -> list[AuditEvent]:
        """Return one page; see :class:`~logbun_logging.adapters.base.Adapter`.

        A page that is more than the server sends at once is fetched in parts.
        """
        events: list[AuditEvent] = []
        step = left = pagination.limit
        while left > 0:
            wanted = replace(pagination, limit=min(step, left))
            try:
                with self._errors():
                    part = select_page(self._select, tenant_id, filters, wanted)
            except _ResponseTooLargeError:
                if wanted.limit == 1:
                    raise
                step = wanted.limit // 2
                continue
            events += part
            left -= len(part)
            if len(part) < wanted.limit:
                break
            pagination = replace(pagination, after=(part[-1].created_at, part[-1].id))
        return events

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
        with self._errors():
            return int(self._select(pruning.count_rows(where), values)[0][0])

    def _remove_step(self, where: str, values: Sequence[Any]) -> pruning.Step:
        """Remove one step's rows, which the server finds in the same statement."""
        with self._errors():
            statement = pruning.delete_expired(where, pruning.STEP), values
            (rows,) = self._with_table(partial(self._write, [statement]))
        if len(rows) < pruning.STEP:
            return pruning.Step(len(rows), None)
        return pruning.Step(len(rows), max((moment, event_id) for moment, event_id in rows))

    def close(self) -> None:
        """Let go of the connection; the next call makes a new one."""
        self._driver.close()

    def after_fork(self) -> None:
        """Forget the parent's connection."""
        self._driver.after_fork()
        self._writing = threading.Lock()

    def _select(self, statement: str, values: Sequence[Any]) -> Rows:
        return self._with_table(partial(self._run, [(statement, values)], self.timeout))[0]

    def _with_table(self, run: Callable[[], list[Rows]]) -> list[Rows]:
        """Run it, and again if the table or a column was missing, as in a namespace made anew."""
        try:
            return run()
        except StatementError as error:
            if not table.lacks_something(str(error)):
                raise
        self.init()
        return run()

    def _write(self, statements: Sequence[Statement]) -> list[Rows]:
        """Run *statements* when no other thread writes.

        SQLite lets one write at a time, so nothing is lost by it. Left to queue for the lock at the
        server, many writers at once get ``SQLITE_BUSY``, and have been seen to hang it for good.
        """
        started = time.monotonic()
        if not self._writing.acquire(timeout=self.timeout):
            raise NoAnswerError(f"other writes took all of timeout={self.timeout:g} s")
        try:
            left = self.timeout - (time.monotonic() - started)
            return self._run(statements, max(left, 0.05))
        finally:
            self._writing.release()

    def _run(self, statements: Sequence[Statement], timeout: float) -> list[Rows]:
        try:
            return self._driver.run(statements, timeout)
        except StatementError as error:
            if error.code != "SQLITE_INTERRUPT":
                raise
        # Nobody of ours interrupts: servers under load have been seen to, and then do it not again.
        return self._driver.run(statements, timeout)

    def _current_token(self) -> str | None:
        token = self._token
        if callable(token):
            try:
                token = token()
            except Exception as error:
                raise NoAnswerError(f"auth_token() raised {type(error).__name__}") from error
        self._shown_to_server = token
        return token

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Tell an unusable database from unusable rows, and let no token into a message."""
        try:
            yield
        except StatementError as error:
            text = f"{self!r}: {error.code}: {self._shown(error)}"
            if error.code == TOO_LARGE_BATCH:
                raise BatchTooLargeError(text) from None
            if error.code.startswith(_REFUSALS):
                raise RejectedEventsError(text) from None
            if error.code == _TOO_LARGE:
                raise _ResponseTooLargeError(text) from None
            raise AdapterUnavailableError(text) from None
        except NoAnswerError as error:
            raise AdapterUnavailableError(f"{self!r}: {self._shown(error)}") from None

    def _shown(self, error: Exception) -> str:
        """Return an error's text without the token: a server may send back what it was given."""
        text = str(error)
        token = self._shown_to_server
        if token:
            for form in (token, token.encode(errors="replace").decode("latin-1")):
                text = text.replace(form, "***")
        return masked(text)[:_LONGEST_ERROR]


class _ResponseTooLargeError(AdapterUnavailableError):
    """The rows are more than the server sends in one answer."""


def _inserts(rows: Sequence[bytes]) -> Iterator[Statement]:
    """Return the statements that insert encoded rows."""
    part: list[bytes] = []
    size = 0
    for row in rows:
        if part and size + len(row) > _MAX_STATEMENT_BYTES:
            yield _insert(part)
            part, size = [], 0
        part.append(row)
        size += len(row) + 1
    yield _insert(part)


def _insert(rows: Sequence[bytes]) -> Statement:
    return table.INSERT_JSON, ((b"[" + b",".join(rows) + b"]").decode(),)


def _migration(columns: Rows) -> list[Statement]:
    """Return the statements that bring a table up to date; *columns* are name and place in key."""
    present = {name for name, _ in columns}
    statements = [table.add_column(name) for name in table.COLUMNS if name not in present]
    if [name for name, place in columns if place] != ["id"]:
        statements.append(table.unique_id())
    for name, what in table.INDEXES.items():
        statements.append(f"CREATE INDEX IF NOT EXISTS {name} ON {what}")
    return [(statement, ()) for statement in statements]


def _open_driver(endpoint: Endpoint) -> Driver:
    """Return the driver, which is imported here, on the thread that configures.

    A fork that interrupts a background thread's import leaves a child that can never finish it.
    """
    if find_spec("libsql_client") is None:
        allowed = "a driver that is installed: install the extra 'turso' of logbun-logging"
        raise ConfigurationError("adapter.driver", "libsql-client", allowed)
    from logbun_logging.adapters.turso.client import FileDriver, HttpDriver  # noqa: PLC0415

    return FileDriver(endpoint) if endpoint.scheme == "file" else HttpDriver(endpoint)
