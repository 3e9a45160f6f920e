r"""What a namespace's folder is for: noted in it, and checked before anything else uses it.

::

    {data_dir}/{namespace}/namespace.json
        {"v": 1, "tenancy": "single_database", "database": "SQLiteAdapter(path='/srv/audit.db')"}

Events that wait in the folder go to the database of whoever opens it next. So the folder says which
database they are for, and whether each tenant has one of its own. A trail with another one is
refused while events wait; when nothing waits, the note is written anew. It is written before the
first event gets into the folder: when the write-ahead log is opened, or the dead-letter queue is
used.

The folder belongs to the user who runs the service. One that another user has made is refused, as
ssh does with its keys: its owner could read every event and add events of others.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from logbun_logging.errors import ConfigurationError
from logbun_logging.files import make_folder, open_regular, write_atomically

__all__ = ["Namespace", "check_owner", "read_note"]

_NAME: Final = "namespace.json"

#: No note is larger, in bytes.
_MAX_NOTE: Final = 64 * 1024


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
        self._noted = False

    def check(self) -> None:
        """Refuse the folder if events of another database wait in it, or if it is another user's.

        Raises:
            ConfigurationError: it is not to be used as it is.
        """
        for path in (self._folder, self._folder / "wal", self._folder / "dlq"):
            check_owner(path)
        found = read_note(self._folder)
        if found is None or found == self._wanted or not _has_events(self._folder):
            return
        allowed = f"the {found.tenancy} {found.database or ''}".rstrip()
        problem = (
            f"events wait in {self._folder}, for another database. Deliver them first, or take "
            f"another namespace; if they are to go here, remove {self._folder / _NAME}"
        )
        given = self._wanted.database or self._wanted.tenancy
        raise ConfigurationError("adapter", given, allowed, problem=problem)

    def note(self) -> None:
        """Write down what the folder is for, once.

        Raises:
            OSError: it cannot be written.
        """
        if self._noted:
            return
        if read_note(self._folder) != self._wanted:
            make_folder(self._folder)
            write_atomically(self._folder / _NAME, [msgspec.json.encode(self._wanted) + b"\n"])
        self._noted = True


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
