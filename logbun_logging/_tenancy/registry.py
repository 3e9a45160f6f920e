r"""The tenants that have a database: kept in a file, so that retention reaches every one of them.

::

    {data_dir}/{namespace}/tenants.ndjson     {"v": 1, "tenant_id": "t1"}\n, a line for each tenant

Which tenants exist is known to the application alone, and it tells us one at a time: by logging. A
process that has just started has heard of none, but has the databases of all to prune. So a tenant
is written down once, before anything is stored for it. Appending to a file of lines
is enough: it is as safe across forks and processes as the WAL, which an embedded database is not,
and a torn line costs the record of that tenant until it is next seen, no other.

The pool calls :meth:`TenantRegistry.add` before it lends a database to somebody who writes, and
retention reads.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from logbun_logging._storage.files import PRIVATE_FILE, make_folder, sync_folder, try_lock

__all__ = ["TenantRegistry"]

#: Seconds to wait for another process that writes a line. After that we write without the lock: the
#: worst that can come of it is a tenant that stands there twice.
_LOCK_WAIT: Final = 1.0

#: So much of the file is read at a time, in bytes; no line is longer.
_PORTION: Final = 1 << 20


class _Line(msgspec.Struct):
    v: int
    tenant_id: str


_decoder = msgspec.json.Decoder(_Line)
_encode = msgspec.json.encode


class TenantRegistry:
    """The file of tenants of one namespace; any thread and any process may use it.

    Args:
        path: the file; made with the first tenant.

    It keeps all ids in memory, about 100 bytes each: each of them has a database somewhere.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._known: set[str] = set()
        self._read_up_to = 0

    def add(self, tenant_id: str) -> None:
        """Write *tenant_id* down unless it stands there already; it is on the disk on return.

        Raises:
            OSError: the file cannot be written.
        """
        if tenant_id in self._known:
            return
        with self._lock:
            new = not self._path.exists()
            make_folder(self._path.parent)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            descriptor = os.open(self._path, flags, PRIVATE_FILE)
            try:
                self._append(descriptor, tenant_id)
            finally:
                # Unlocked by hand: a child forked just now has the descriptor and so the lock, too.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
                os.close(descriptor)
            if new:
                sync_folder(self._path.parent)

    def tenants(self) -> list[str]:
        """Return all tenants, those that other processes have added among them, sorted.

        Raises:
            OSError: the file cannot be read.
        """
        with self._lock:
            with suppress(FileNotFoundError):
                descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    self._catch_up(descriptor)
                finally:
                    os.close(descriptor)
            return sorted(self._known)

    def after_fork(self) -> None:
        """Let go, in a forked child, of a lock that a thread of the parent may have held."""
        self._lock = threading.Lock()

    def _append(self, descriptor: int, tenant_id: str) -> None:
        deadline = time.monotonic() + _LOCK_WAIT
        while not try_lock(descriptor) and time.monotonic() < deadline:
            time.sleep(0.01)
        torn = self._catch_up(descriptor)
        if tenant_id in self._known:
            return
        line = _encode({"v": 1, "tenant_id": tenant_id}) + b"\n"
        size = os.fstat(descriptor).st_size
        data = b"\n" + line if torn else line
        if os.write(descriptor, data) != len(data):
            os.ftruncate(descriptor, size)
            raise OSError(f"{self._path}: a line could not be written whole: is the disk full?")
        os.fdatasync(descriptor)
        self._known.add(tenant_id)

    def _catch_up(self, descriptor: int) -> bool:
        """Read the lines that are new; return whether the last one is torn."""
        size = os.fstat(descriptor).st_size
        if size < self._read_up_to:
            self._read_up_to = 0  # somebody has put another file in its place
        rest = b""
        while chunk := os.pread(descriptor, _PORTION, self._read_up_to + len(rest)):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                with suppress(msgspec.MsgspecError, UnicodeDecodeError):
                    self._known.add(_decoder.decode(line).tenant_id)
            self._read_up_to += sum(len(line) + 1 for line in lines)
            if len(rest) > _PORTION:  # no line of ours: it is passed over
                self._read_up_to += len(rest)
                rest = b""
        return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
