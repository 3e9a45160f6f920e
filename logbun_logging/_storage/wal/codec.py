"""One record, one line: the only place that knows how a record is written and read.

The DLQ uses the same lines.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import BinaryIO, Final
from zlib import crc32

import msgspec

from logbun_logging.event import Entry, decode_event

__all__ = ["encode_line", "entry_of", "read_records"]

_MARK: Final = b'{"v": '
_OPENING: Final = b'{"v": 1, "crc": "'
_MIDDLE: Final = b'", "event": '
_PAYLOAD_AT: Final = len(_OPENING) + 8 + len(_MIDDLE)

#: No record is longer; a line that is, is damaged, and is read in pieces of this many bytes.
_MAX_LINE: Final = 32 * 1024 * 1024


def encode_line(payload: bytes) -> bytes:
    """Return the line that holds *payload*."""
    return b'{"v": 1, "crc": "%08x", "event": %b}\n' % (crc32(payload), payload)


def read_records(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    r"""Yield every record in order: the payload and True, or damaged bytes and False.

    Lines end with ``b"\\n"`` only. Nothing is left out of what is yielded, but blank lines and the
    rest of a hole that is longer than any record: it may be larger than the disk.
    """
    while line := file.readline(_MAX_LINE):
        payload = _decode(line)
        if payload is not None:
            yield payload, True
        elif line.strip():
            yield from _salvage(line)
        if len(line) == _MAX_LINE:
            _skip_hole(file)


def _skip_hole(file: BinaryIO) -> None:
    """Go on with the next byte that is on the disk, if the file system tells which that is."""
    here = file.tell()
    try:
        descriptor = file.fileno()
        was = os.lseek(descriptor, 0, os.SEEK_CUR)  # the buffer relies on it
    except OSError:  # not a file
        return
    try:
        there = os.lseek(descriptor, here, os.SEEK_DATA)
    except OSError as error:
        there = os.fstat(descriptor).st_size if error.errno == errno.ENXIO else here
    finally:
        os.lseek(descriptor, was, os.SEEK_SET)
    file.seek(max(here, there))


def _salvage(line: bytes) -> Iterator[tuple[bytes, bool]]:
    """Find the whole records in a line that is not one record."""
    start = line.find(_MARK)
    if start != 0:
        yield (line, False) if start < 0 else (line[:start], False)
    while start >= 0:
        following = line.find(_MARK, start + 1)
        part = line[start:] if following < 0 else line[start:following]
        payload = _decode(part)
        yield (part, False) if payload is None else (payload, True)
        start = following


def _decode(line: bytes) -> bytes | None:
    """Return the payload of an undamaged line; its end may be missing or one wrong byte."""
    if not line.startswith(_OPENING):
        return None
    end = line.rfind(b"}")
    if not len(line) - 2 <= end or line[_PAYLOAD_AT - len(_MIDDLE) : _PAYLOAD_AT] != _MIDDLE:
        return None
    payload = line[_PAYLOAD_AT:end]
    checksum = b"%08x" % crc32(payload)
    return payload if line[len(_OPENING) : len(_OPENING) + 8] == checksum else None


class _Head(msgspec.Struct):
    id: str
    tenant_id: str | None = None


_decode_head = msgspec.json.Decoder(_Head).decode


def entry_of(payload: bytes, *, check: bool = False) -> Entry | None:
    """Return the entry of a recovered payload, or None if it is not an event.

    Only what the pipeline needs is decoded, unless *check* asks for the whole. JSON that is nested
    too deep to be decoded is none that the encoder of events writes.
    """
    try:
        return Entry((decode_event if check else _decode_head)(payload).tenant_id, payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
