"""What is in the folder of the dead-letter queue, read as seldom as can be.

A file's first line is read once for each content that the file has had, whatever it is called
meanwhile; and while the folder has not changed, nothing is read at all.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

from logbun_logging._storage.dlq.envelope import (
    MAX_HEAD,
    DlqFile,
    Envelope,
    State,
    decode_head,
    split_name,
    suffix_of,
)
from logbun_logging._storage.files import open_regular

__all__ = ["Listing"]

#: Two changes of a folder within so many seconds may leave it with the same time of change.
_COARSE: Final = 2.0

#: What tells one content of a file from another: inode, size, time of change.
_Content: TypeAlias = tuple[int, int, int]


class Listing:
    """The files of one folder.

    Only the GIL guards it: who looks at the same time as another reads some first lines twice.

    Args:
        folder: need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._heads: dict[_Content, Envelope | None] = {}
        self._found: tuple[int, list[DlqFile]] | None = None  # the folder's time of change then

    def files(self) -> list[DlqFile]:
        """Return all files, in no order.

        One that is renamed while we look may be seen under both names: it is one all the same.

        Raises:
            OSError: the folder cannot be read.
        """
        changed = self._changed()
        if changed is None:
            return []
        found = self._found
        if found is not None and found[0] == changed:
            return found[1]
        files = self._read()
        if time.time() - changed / 1e9 < _COARSE or self._changed() != changed:
            self._found = None
        else:
            self._found = (changed, files)
        return files

    def _changed(self) -> int | None:
        try:
            return os.stat(self._folder).st_mtime_ns  # noqa: PTH116 - half the time of Path.stat
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _read(self) -> list[DlqFile]:
        files: dict[str, DlqFile] = {}
        heads: dict[_Content, Envelope | None] = {}
        for entry in self._entries():
            name, state = split_name(entry.name)
            if state is None or not entry.is_file(follow_symlinks=False):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
                content = (status.st_ino, status.st_size, status.st_mtime_ns)
                if content in self._heads:
                    heads[content] = self._heads[content]
                else:
                    heads[content] = self._head(name + suffix_of(state))
            except FileNotFoundError:  # renamed or delivered meanwhile
                continue
            except OSError:
                heads[content] = None
            if name not in files or state != "processing":
                files[name] = DlqFile(name, state, status.st_size, heads[content])
        self._heads = heads
        return [*files.values()]

    def _head(self, file_name: str) -> Envelope | None:
        with open(open_regular(self._folder / file_name), "rb") as file:  # noqa: PTH123
            return decode_head(file.readline(MAX_HEAD))

    def _entries(self) -> list[os.DirEntry[str]]:
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self._folder) as found:
            return list(found)
        return []

    def sizes(self) -> dict[str, tuple[State, int]]:
        """Return each file's state and bytes by its name; no file is opened."""
        found: dict[str, tuple[State, int]] = {}
        for entry in self._entries():
            name, state = split_name(entry.name)
            if state is not None and entry.is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):  # renamed or delivered meanwhile
                    found[name] = (state, entry.stat(follow_symlinks=False).st_size)
        return found

    def irregular(self) -> list[str]:
        """Return the names of what is called like a dead letter and is no regular file."""
        return [
            entry.name
            for entry in self._entries()
            if split_name(entry.name)[1] and not entry.is_file(follow_symlinks=False)
        ]
