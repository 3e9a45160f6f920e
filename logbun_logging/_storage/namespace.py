r"""What a namespace's folder is for: noted in it, and checked before anything else uses it.

::

    {data_dir}/{namespace}/namespace.json
        {"v": 1, "tenancy": "single_database", "database": "SQLiteAdapter(path='/srv/audit.db')"}

Events that wait in the folder go to the database of whoever opens it next. So the folder says which
database they are for, and whether each tenant has one of its own. A trail with another one is
refused while events wait; when nothing waits, the note is written anew. It is looked at again
whenever the write-ahead log gets a folder, the dead-letter queue a file, or either is to be read:
trails of two databases may be made while nothing waits, and begin to log later. Whoever makes such
a file locks the namespace's folder meanwhile, shared; whoever changes the note locks it alone.

The folder belongs to the user who runs the service. One that another user has made is refused, as
ssh does with its keys: its owner could read every event and add events of others.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from logbun_logging._storage.files import make_folder, open_regular, unlock, write_atomically
from logbun_logging.errors import ConfigurationError

__all__ = ["Namespace", "check_owner", "read_note"]

_NAME: Final = "namespace.json"

#: No note is larger, in bytes.
_MAX_NOTE: Final = 64 * 1024

#: How long those are waited for who make a file or change the note, and between looks, in seconds.
_PATIENCE: Final = 1.0
_LOOK: Final = 0.002


class _Note(msgspec.Struct, frozen=True):
    v: int
    tenancy: str
    database: str | None = None


_decoder = msgspec.json.Decoder(_Note)


class Namespace:
    """The folder of one namespace, and what this process wants to use it for.

    Args:
        folder: ``data_dir/namespace``.
        tenancy: the option ``tenancy.mode``.
        database: what names the database, without secrets; None where each tenant has its own, or
            where nothing names it.
    """

    def __init__(self, folder: Path, tenancy: str, database: str | None) -> None:
        self._folder = folder
        self._wanted = _Note(1, tenancy, database)

    def check(self) -> None:
        """Refuse the folder if events of another database wait in it, or if it is another user's.

        Raises:
            ConfigurationError: it is not to be used as it is.
        """
        for path in (self._folder, self._folder / "wal", self._folder / "dlq"):
            check_owner(path)
        if _has_events(self._folder):
            self.check_note()

    def check_note(self) -> None:
        """Refuse the folder if it is noted to be for another database.

        Raises:
            ConfigurationError: it is.
        """
        found = read_note(self._folder)
        if found is None or found == self._wanted:
            return
        allowed = f"the {found.tenancy} {found.database or ''}".rstrip()
        problem = (
            f"events wait in {self._folder}, for another database. Deliver them first, or take "
            f"another namespace; if they are to go here, remove {self._folder / _NAME}"
        )
        given = self._wanted.database or self._wanted.tenancy
        raise ConfigurationError("adapter", given, allowed, problem=problem)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Note what the folder is for, and keep it so while the caller makes a file in it.

        A note that cannot be written where there is none keeps no event from being written.

        Raises:
            OSError: events of another database wait in it, or it cannot be opened.
        """
        make_folder(self._folder)
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _lock(descriptor, fcntl.LOCK_SH)
            if read_note(self._folder) != self._wanted:
                _lock(descriptor, fcntl.LOCK_EX)
                if _has_events(self._folder):
                    self.check_note()
                self._write_note()
                _lock(descriptor, fcntl.LOCK_SH)
                self.check_note()  # between the two locks another one may have had its turn
            yield
        except ConfigurationError as error:
            raise OSError(errno.EBUSY, str(error)) from error
        finally:
            with suppress(OSError):
                unlock(descriptor)
            os.close(descriptor)

    def _write_note(self) -> None:
        if read_note(self._folder) == self._wanted:
            return
        try:
            text = msgspec.json.encode(self._wanted) + b"\n"
            write_atomically(self._folder / _NAME, [text])
        except Exception as error:  # at the interpreter's very end even open() may be gone
            if read_note(self._folder) is not None:
                problem = f"{self._folder / _NAME} cannot be written: {error}"
                raise OSError(errno.EBUSY, problem) from error


def _lock(descriptor: int, how: int) -> None:
    """Lock the folder; where the file system has no locks, whoever makes a file there says so.

    Raises:
        OSError: others have it for too long.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
        except OSError:
            return
        else:
            return
        time.sleep(_LOOK)


def read_note(folder: Path) -> _Note | None:
    """Return what a folder is noted to be for, None if nothing readable says so."""
    try:
        descriptor = open_regular(folder / _NAME)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file, suppress(msgspec.MsgspecError, UnicodeDecodeError):
        return _decoder.decode(file.read(_MAX_NOTE))
    return None


def check_owner(path: Path) -> None:
    """Refuse a folder that another user has made, or that everybody may write.

    Raises:
        ConfigurationError: it is one.
    """
    try:
        owners = {path.lstat().st_uid, path.stat().st_uid}  # of a link, and of where it leads
        mode = path.stat().st_mode
    except OSError:  # it is not there, or not to be seen
        return
    mine = os.geteuid()
    others = owners - {mine}
    if others:
        problem = f"{path} belongs to the user {min(others)}, and this is the user {mine}"
    elif stat.S_ISDIR(mode) and mode & stat.S_IWOTH:
        problem = f"everybody may write in {path}"
    else:
        return
    allowed = "a folder whose namespaces belong to the user who runs the service, and nobody else"
    raise ConfigurationError("data_dir", str(path.parent), allowed, problem=problem)


def _has_events(folder: Path) -> bool:
    """Tell whether a process has the folder open, or has left events there."""
    with suppress(OSError):
        if any((folder / "wal").iterdir()):
            return True
    with suppress(OSError):
        return any(
            path.name.endswith((".batch", ".processing")) for path in (folder / "dlq").iterdir()
        )
    return False
