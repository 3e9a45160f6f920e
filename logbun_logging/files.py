"""Files that survive: atomic writes, directory syncs, kernel locks.

The assumptions about the disk: a rename within a directory is atomic; a file's data is safe once
``fdatasync`` of its descriptor has returned without error; its name is safe once its directory has
been synced. ``flock`` locks belong to the open file description and end with the last process that
has it, so no pid and no time stamp is ever trusted.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = [
    "PRIVATE_FILE",
    "make_folder",
    "open_locked",
    "remove_leftovers",
    "sync_folder",
    "try_lock",
    "unlock",
    "write_atomically",
]

#: Audit data is nobody else's business.
PRIVATE_FILE: Final = 0o600
_PRIVATE_FOLDER: Final = 0o700

_TEMPORARY: Final = ".tmp"


def make_folder(path: Path) -> None:
    """Make *path* and its missing parents, private to this user, and sync their names."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        with suppress(FileExistsError):
            folder.mkdir(mode=_PRIVATE_FOLDER)
        sync_folder(folder.parent)


def sync_folder(path: Path) -> None:
    """Make the names in *path* survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, chunks: Iterable[bytes]) -> int:
    """Write a file that is either there whole or not at all; return its size in bytes.

    A temporary file in the same folder is synced and then renamed over *path*. It is locked until
    then, so that one which a killed process has left can be told from one that is being written.

    Raises:
        OSError: the disk is full, say; nothing is left behind then.
    """
    temporary = path.with_name(path.name + _TEMPORARY)
    with os.fdopen(_create_locked(temporary), "wb") as file:
        try:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
            temporary.rename(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        finally:
            unlock(file.fileno())
    sync_folder(path.parent)
    return size


def _create_locked(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
    while True:
        descriptor = os.open(path, flags, PRIVATE_FILE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                os.ftruncate(descriptor, 0)
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # taken for a leftover, and removed


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes have left in *folder*."""
    for path in folder.glob("*" + _TEMPORARY):
        descriptor = open_locked(path)
        if descriptor is not None:
            path.unlink(missing_ok=True)
            os.close(descriptor)


def unlock(descriptor: int) -> None:
    """Unlock at once: a forked child may have inherited the descriptor, and the lock with it."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def try_lock(descriptor: int) -> bool:
    """Lock an open file or folder; return False if another one has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def open_locked(path: Path, opener: Callable[[Path], int] | None = None) -> int | None:
    """Open *path* and lock it; return the descriptor, or None if it is gone or another's.

    Between open and lock the name may have come to stand for another file: then it is not ours.
    """
    try:
        descriptor = opener(path) if opener else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        if try_lock(descriptor) and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except FileNotFoundError:
        pass
    os.close(descriptor)
    return None
