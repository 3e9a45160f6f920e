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
    "sync_folder",
    "try_lock",
    "write_atomically",
]

#: Audit data is nobody else's business.
PRIVATE_FILE: Final = 0o600
_PRIVATE_FOLDER: Final = 0o700


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

    A temporary file in the same folder is synced and then renamed over *path*.

    Raises:
        OSError: the disk is full, say; nothing is left behind then.
    """
    temporary = path.with_name(path.name + ".tmp")
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, PRIVATE_FILE
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(descriptor)
            size = file.tell()
        temporary.rename(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)
    return size


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
