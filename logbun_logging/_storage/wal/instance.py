"""One process's folder in the ``wal`` folder, held by a kernel lock for as long as it lives.

The lock is on the folder itself and on no file in it: every version of this library takes a folder
whose lock can be had for a dead process's, so a live one has to hold just that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Final

from logbun_logging._storage.files import make_folder, sync_folder, try_lock

__all__ = ["InstanceFolder"]

#: The pause after a lock could not be had, in seconds; doubles up to the longest.
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 30.0


class InstanceFolder:
    """The folder that this process writes to.

    Only the writer calls it, under its keep lock.

    Args:
        parent: the namespace's ``wal`` folder.
        prepare: returns what is entered while a folder is made.

    Attributes:
        path: the folder; None while there is none.
    """

    def __init__(
        self,
        parent: Path,
        prepare: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.path: Path | None = None
        self._parent = parent
        self._prepare = prepare
        self._descriptor = -1
        self._pause = _FIRST_PAUSE
        self._try_at = 0.0

    @property
    def pausing(self) -> bool:
        """The file system gave no lock just now: it will not give one at once."""
        return time.monotonic() < self._try_at

    def claim(self) -> Path:
        """Return the folder; if there is none, make and lock one.

        Raises:
            OSError: it cannot be made or locked; nothing is left behind then.
        """
        if self.path is None:
            with self._prepare():
                return self._make()
        return self.path

    def _make(self) -> Path:
        while True:
            name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.urandom(6).hex()}"
            folder = self._parent / name
            make_folder(folder)
            descriptor = -1
            try:
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                if self._lock(descriptor) and folder.exists():
                    self.path, self._descriptor = folder, descriptor
                    return folder
            except FileNotFoundError:
                pass
            except OSError:
                with suppress(OSError):
                    folder.rmdir()
                raise
            finally:
                if self.path is None and descriptor >= 0:
                    os.close(descriptor)
            # Another process has taken the new folder for an abandoned one, and removes it.

    def _lock(self, descriptor: int) -> bool:
        try:
            locked = try_lock(descriptor)
        except OSError as error:
            self._try_at = time.monotonic() + self._pause
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            text = (
                f"{error.strerror}: no flock on {self._parent}; data_dir has to be on a local disk"
            )
            raise OSError(error.errno, text) from error
        self._pause = _FIRST_PAUSE
        return locked

    def forget_if_gone(self) -> None:
        """Give the folder up if its name stands for it no more: it was removed, moved, replaced."""
        if self.path is not None:
            with suppress(OSError):
                if os.path.samestat(os.fstat(self._descriptor), self.path.lstat()):
                    return
            self.abandon()

    def sync(self) -> None:
        """Make what was removed from the folder stay removed, also after a power cut."""
        if self.path is not None:
            with suppress(OSError):  # then it is delivered once more
                sync_folder(self.path)

    def close(self) -> None:
        """Remove the folder if it is empty, and give it up."""
        if self.path is not None:
            try:
                self.path.rmdir()
                sync_folder(self._parent)
            except OSError:  # not empty: the next process adopts it
                self.sync()
        self.abandon()

    def abandon(self) -> None:
        """Let go of the lock; whatever is left can be adopted by others."""
        descriptor, self._descriptor, self.path = self._descriptor, -1, None
        if descriptor >= 0:
            os.close(descriptor)
