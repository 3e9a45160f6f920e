"""Files that survive: atomic writes, directory syncs, kernel locks.

The assumptions about the disk: a rename within a directory is atomic; a file's data is safe once
``fdatasync`` of its descriptor has returned without error; its name is safe once its directory has
been synced. ``flock`` locks belong to the open file description and end with the last process that
has it, so no pid and no time stamp is ever trusted.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

__all__ = [
    "PRIVATE_FILE",
    "link",
    "make_folder",
    "move",
    "open_locked",
    "open_regular",
    "remove_leftovers",
    "replace_locked",
    "sync_folder",
    "try_lock",
    "unlock",
    "write_atomically",
    "writing_atomically",
]

#: Audit data is nobody else's business.
PRIVATE_FILE: Final = 0o600
_PRIVATE_FOLDER: Final = 0o700

_TEMPORARY: Final = ".tmp"

#: How a file is made that nobody else has.
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

#: What a file system answers that has no hard links.
_NO_LINKS: Final = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


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


def open_regular(path: Path) -> int:
    """Open a regular file for reading and return its descriptor.

    A link is not followed, and a FIFO that somebody has planted is not waited for.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:  # a link, a socket
            raise _not_regular(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular(path)
    return descriptor


def _not_regular(path: Path) -> OSError:
    return OSError(errno.EINVAL, "not a regular file", str(path))


def write_atomically(path: Path, chunks: Iterable[bytes]) -> int:
    """Write a file that is either there whole or not at all; return its size in bytes.

    Raises:
        OSError: the disk is full, say; nothing is left behind then.
    """
    with writing_atomically(path) as file:
        file.writelines(chunks)
        return file.tell()


@contextmanager
def writing_atomically(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that takes the place of *path* when the block ends without an error.

    It is a temporary file in the same folder, synced and then renamed. It is locked until then, so
    that one which a killed process has left can be told from one that is being written.

    Raises:
        OSError: the disk is full, say; nothing is left behind then.
    """
    with _replacing(path) as descriptor, open(descriptor, "wb", closefd=False) as file:
        yield file
    unlock(descriptor)
    os.close(descriptor)
    sync_folder(path.parent)


def replace_locked(path: Path, chunks: Iterable[bytes]) -> int:
    """Write a file that takes the place of *path*; return its descriptor, which is still locked.

    So the name stands for a locked file at any moment, if it did before. The folder is not synced.

    Raises:
        OSError: the disk is full, say; nothing is left behind then.
    """
    with _replacing(path) as descriptor, open(descriptor, "wb", closefd=False) as file:
        file.writelines(chunks)
    return descriptor


@contextmanager
def _replacing(path: Path) -> Iterator[int]:
    descriptor, temporary = _create_locked(path)
    try:
        yield descriptor
        os.fsync(descriptor)
        temporary.rename(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        unlock(descriptor)
        os.close(descriptor)
        raise


def move(source: Path, target: Path) -> None:
    """Rename a file whose lock the caller has, never over another file.

    A process that is killed meanwhile leaves both names for the one file, or, where there are no
    hard links, an empty file as *target*.

    Raises:
        FileExistsError: *target* is another file.
        OSError: it cannot be renamed.
    """
    try:
        if not link(source, target):
            _move_by_rename(source, target)
            return
    except FileExistsError:
        if not os.path.samestat(source.lstat(), target.lstat()):
            raise
    source.unlink()


def link(source: Path, target: Path) -> bool:
    """Give a file a second name; return False if the file system has no hard links.

    Raises:
        FileExistsError: *target* is there.
        OSError: it cannot be linked.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NO_LINKS:
            return False
        raise
    return True


def _move_by_rename(source: Path, target: Path) -> None:
    """Rename a file, where there are no hard links, over an empty one that is ours.

    That takes the name before the rename does, and is locked, so that nobody claims it meanwhile.

    Raises:
        FileExistsError: *target* is another file.
    """
    descriptor = os.open(target, _NEW_FILE, PRIVATE_FILE)
    try:
        if not _lock_by_name(descriptor, target):  # somebody was quicker, and sees to it
            raise FileExistsError(errno.EEXIST, "already there", str(target))
        source.rename(target)
    finally:
        os.close(descriptor)


def _create_locked(path: Path) -> tuple[int, Path]:
    """Make a locked temporary file for *path*; return its descriptor and its own path.

    The name cannot be guessed, and whatever has it already is not touched: a link that somebody has
    planted leads nowhere.
    """
    while True:
        temporary = path.with_name(f"{path.name}.{os.urandom(8).hex()}{_TEMPORARY}")
        descriptor = os.open(temporary, _NEW_FILE, PRIVATE_FILE)
        try:
            if _lock_by_name(descriptor, temporary):
                return descriptor, temporary
        except BaseException:
            os.close(descriptor)
            with suppress(OSError):
                temporary.unlink()
            raise
        os.close(descriptor)  # taken for a leftover, and removed


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes have left in *folder*.

    What is no regular file, or another user's, is left alone.
    """
    for path in folder.glob("*" + _TEMPORARY):
        with suppress(OSError):
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


def open_locked(path: Path, opener: Callable[[Path], int] = open_regular) -> int | None:
    """Open *path* and lock it; return the descriptor, or None if it is gone or another's.

    Raises:
        OSError: it cannot be opened or locked.
    """
    try:
        descriptor = opener(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        if _lock_by_name(descriptor, path):
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _lock_by_name(descriptor: int, path: Path) -> bool:
    """Lock what was opened as *path*; return False if another one has it, or *path* is gone.

    Between open and lock the name may have come to stand for another file: then it is not ours.
    """
    try:
        return try_lock(descriptor) and os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
