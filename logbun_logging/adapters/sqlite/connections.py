"""Connections to one SQLite file: one that writes, and a few that read.

An open connection keeps the file that it has opened, whatever becomes of the file's name: who moves
an audit log away, or puts a backup in its place, would leave the writer behind in a file that
nobody looks at. So the file's identity is compared before and after each transaction.

Page caches are the memory that a database costs. Those of all writers of the process share one
budget, readers have small ones, and few readers are kept. Files are not mapped into memory: who
cuts a mapped file off ends the process by a signal.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeAlias

from logbun_logging._storage.files import PRIVATE_FILE
from logbun_logging.adapters.base import keep_inherited
from logbun_logging.adapters.sqlite.schema import migrate
from logbun_logging.errors import AdapterUnavailableError

__all__ = ["Connections"]

#: Device and inode: what a file is, by whatever name.
_Identity: TypeAlias = tuple[int, int]

#: Page caches of all writers of this process together, and the least that each has, in KiB.
_WRITERS_CACHE: Final = 64 * 1024
_LEAST_CACHE: Final = 1024

#: Page caches of the readers of one file, in KiB: each has its share while it is in use.
_READERS_CACHE: Final = 32 * 1024
_MOST_READER_CACHE: Final = 8 * 1024
_LEAST_READER_CACHE: Final = 2 * 1024
_MAX_IDLE_READERS: Final = 4

#: A long read keeps the journal from being used again; once it has ended, the file gets this small.
_JOURNAL_SIZE_LIMIT: Final = 64 * 2**20


class _Connection:
    """An open connection.

    Attributes:
        raw: the connection.
        identity: which file it has open.
        cache: the bound of its page cache, in KiB.
    """

    __slots__ = ("cache", "identity", "raw")

    def __init__(self, raw: sqlite3.Connection, identity: _Identity, cache: int) -> None:
        self.raw = raw
        self.identity = identity
        self.cache = cache

    def limit_cache(self, kib: int) -> None:
        """Change the bound of the page cache; what is over it is freed at once."""
        if kib != self.cache:
            self.raw.execute(f"PRAGMA cache_size = -{kib}")
            self.cache = kib


class Connections:
    """Lends the connection that writes, to one thread at a time, and connections that read.

    Args:
        path: the file.
        busy_timeout: seconds to wait for another process that writes.
    """

    def __init__(self, path: Path, busy_timeout: float) -> None:
        self._path = path
        self._busy_timeout = busy_timeout
        self._reset()

    def _reset(self) -> None:
        self._write_lock = threading.Lock()
        self._readers_lock = threading.Lock()
        self._opened = False  # written under _write_lock; says that the next call may open the file
        self._writer: _Connection | None = None  # under _write_lock
        self._idle: list[_Connection] = []  # under _readers_lock, as is what follows
        self._reading = 0  # readers in use
        self._generation = object()

    def open(self) -> None:
        """Open the file, which is made when it is missing, and bring its table up to date."""
        with self._write_lock:
            self._open()
            self._opened = True

    def close(self) -> None:
        """Close every connection that is not in use just now; those in use close when done."""
        with self._write_lock:
            self._opened = False
        self.suspend()

    def suspend(self) -> None:
        """Do what :meth:`close` does; the next call opens the file again."""
        with self._write_lock:
            self._close_all()

    def reopen(self) -> None:
        """Open the file anew: its table has to be made or mended, or the file was cut off."""
        self.suspend()
        with self._write_lock:
            self._open()

    def after_fork(self) -> None:
        """Forget, in a forked child, the parent's connections without closing them.

        A file that was open at the fork is opened no more: SQLite would believe that it still has
        the parent's locks on it.
        """
        if self._writer or self._idle or self._reading or self._write_lock.locked():
            with suppress(FileNotFoundError):
                _carried_over.add(_identity(self._path))
        keep_inherited((self._writer, self._idle))
        self._reset()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Run a transaction, which is committed if nothing is raised.

        Raises:
            AdapterUnavailableError: the file is not the one that was opened. The next call opens
                the one that has the name now.
        """
        with self._write_lock:
            if self._writer is None and not self._opened:
                raise AdapterUnavailableError(f"{self._path} is not open")
            writer = self._open()
            self._require_same_file(writer)
            connection = writer.raw
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            self._require_same_file(writer)
            writer.limit_cache(_cache_share())

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection that nobody else uses meanwhile, to the file that has the name now."""
        reader, generation, share = self._idle_reader()
        try:
            if reader is None:
                reader = self._connect(share)
            reader.limit_cache(share)
            yield reader.raw
        finally:
            with self._readers_lock:
                self._reading -= 1
                if (
                    reader is not None
                    and generation is self._generation
                    and len(self._idle) < _MAX_IDLE_READERS
                ):
                    self._idle.append(reader)
                    reader = None
            if reader is not None:
                reader.raw.close()

    def _idle_reader(self) -> tuple[_Connection | None, object, int]:
        """Return a reader, if one is idle, the generation, and its share of the page caches."""
        with self._readers_lock:
            self._reading += 1
            share = max(_LEAST_READER_CACHE, _READERS_CACHE // self._reading)
            share = min(share, _MOST_READER_CACHE)
            while self._idle:
                reader = self._idle.pop()
                if self._is_same_file(reader):
                    return reader, self._generation, share
                reader.raw.close()
            return None, self._generation, share

    def _open(self) -> _Connection:
        """Return the writer, opened if it is not; under the write lock."""
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # A new file is this user's alone; its journal gets the same permissions from SQLite.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE))
            writer = self._connect(_cache_share(1))
            try:
                migrate(writer.raw)
            except BaseException:
                writer.raw.close()
                raise
            self._writer = writer
            _writers.add(self)
            _share_caches(self)
        return self._writer

    def _close_all(self) -> None:
        """Close what nobody uses; under the write lock."""
        with self._readers_lock:
            self._generation = object()
            idle, self._idle = self._idle, []
        for reader in idle:
            reader.raw.close()
        writer, self._writer = self._writer, None
        _writers.discard(self)
        if writer is not None:
            writer.raw.close()

    def _is_same_file(self, connection: _Connection) -> bool:
        try:
            return _identity(self._path) == connection.identity
        except OSError:  # the name is gone, or leads nowhere any more
            return False

    def _require_same_file(self, writer: _Connection) -> None:
        if self._is_same_file(writer):
            return
        # What is in the journal belongs to the file that was opened, and must not be left lying
        # beside the one that has its name now. SQLite leaves it where a file was moved.
        with suppress(sqlite3.Error):
            writer.raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._close_all()
        raise AdapterUnavailableError(
            f"{self._path} was moved, removed or replaced while it was open: what was stored "
            "before is in the file that was there then, and the next call opens the path anew"
        )

    def _connect(self, cache: int) -> _Connection:
        identity = _identity(self._path)
        if identity in _carried_over:
            raise AdapterUnavailableError(
                f"{self._path} was open when this process was forked, by a call that hung or "
                "without Python's at-fork hooks: only another process can open it safely"
            )
        connection = sqlite3.connect(
            f"{self._path.as_uri()}?mode=rw",  # who reads makes no file
            uri=True,
            timeout=self._busy_timeout,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            _use_wal(connection, self._busy_timeout)
            # With the WAL journal NORMAL can lose the last commits to a power cut, not the file;
            # FULL syncs each commit, and a commit is what the pipeline acknowledges.
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA cache_size = -{cache}")
            # A larger journal lets pages that many batches touch be written back once.
            connection.execute("PRAGMA wal_autocheckpoint = 8192")
            connection.execute(f"PRAGMA journal_size_limit = {_JOURNAL_SIZE_LIMIT}")
            # What retention removes is overwritten, not only forgotten.
            connection.execute("PRAGMA secure_delete = ON")
            if _identity(self._path) != identity:
                raise AdapterUnavailableError(f"{self._path} was replaced while it was opened")
        except BaseException:
            connection.close()
            raise
        return _Connection(connection, identity, cache)

    def fit_cache(self) -> None:
        """Give back what the writer's page cache has over its share, unless it is in use.

        Who uses it does the same at the end of the transaction.
        """
        if self._write_lock.acquire(blocking=False):
            try:
                if self._writer is not None:
                    with suppress(sqlite3.Error):
                        self._writer.limit_cache(_cache_share())
            finally:
                self._write_lock.release()


def _identity(path: Path) -> _Identity:
    found = os.stat(path)  # noqa: PTH116 - half the time of Path.stat, twice a transaction
    return found.st_dev, found.st_ino


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


#: Files that a fork has carried over while they were open; written while a child starts anew.
_carried_over: Final[set[_Identity]] = set()

#: Those of this process that have a writer open.
_writers: weakref.WeakSet[Connections] = weakref.WeakSet()


def _cache_share(more: int = 0) -> int:
    """Return the bound of a writer's page cache in KiB, if there are *more* writers than now."""
    return max(_LEAST_CACHE, _WRITERS_CACHE // max(1, len(_writers) + more))


def _share_caches(newest: Connections) -> None:
    for connections in list(_writers):
        if connections is not newest:
            connections.fit_cache()
