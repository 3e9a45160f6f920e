"""What a file of the dead-letter queue looks like: its name, its first line, its records."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec

from logbun_logging._storage.wal.codec import encode_line
from logbun_logging.event import utc_now

__all__ = [
    "MAX_HEAD",
    "DlqFile",
    "Envelope",
    "State",
    "age_of",
    "decode_head",
    "encode_file",
    "is_plain",
    "new_envelope",
    "new_name",
    "renamed",
    "split_name",
    "suffix_of",
]

State = Literal["pending", "processing", "dead"]

_STATES: Final[dict[str, State]] = {
    ".batch": "pending",
    ".batch.processing": "processing",
    ".batch.dead": "dead",
}
_SUFFIXES: Final[dict[State, str]] = {state: suffix for suffix, state in _STATES.items()}
_UNSAFE: Final = re.compile(r"[^a-z0-9.-]+")

#: No first line is longer, in bytes; one that is, is damaged.
MAX_HEAD: Final = 1024 * 1024


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a dead-lettered batch.

    Attributes:
        tenant_id: whose events they are; None if they are of no tenant, or of several.
        count: how many.
        attempts: failed scans so far; an outage of the database does not count.
        reason: the last error, or why the batch was spilled.
        first_failed_at: when it came here (ISO 8601, UTC).
        last_failed_at: when an attempt was counted last, or when it came here.
        mixed: the events are of several tenants, and each says of which.
        outages: how many of the attempts looked like an outage of the database, which took other
            events meanwhile. With each the file is delivered in smaller pieces.
        tenant_required: the events have no tenant where ``require_tenant_id`` asks for one.
    """

    tenant_id: str | None
    count: int
    attempts: int
    reason: str
    first_failed_at: str
    last_failed_at: str
    mixed: bool = False
    outages: int = 0
    tenant_required: bool = False


class _Head(msgspec.Struct):
    v: int
    dlq: Envelope


class DlqFile(msgspec.Struct, frozen=True):
    """One file of the dead-letter queue, as ``trail.dlq.list()`` shows it.

    Attributes:
        name: names it in every other call; stays the same in all states.
        state: ``"pending"``, ``"processing"`` or ``"dead"``.
        size: in bytes.
        envelope: what is known of it; None if its first line is damaged.
    """

    name: str
    state: State
    size: int
    envelope: Envelope | None


def new_envelope(
    tenant_id: str | None,
    count: int,
    reason: str,
    *,
    mixed: bool = False,
    tenant_required: bool = False,
) -> Envelope:
    """Return the envelope of a batch that failed just now."""
    now = utc_now()
    return Envelope(
        tenant_id=tenant_id,
        count=count,
        attempts=0,
        reason=reason[:2000],
        first_failed_at=now,
        last_failed_at=now,
        mixed=mixed,
        tenant_required=tenant_required,
    )


def encode_file(envelope: Envelope, payloads: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file."""
    yield b'{"v": 1, "dlq": ' + msgspec.json.encode(envelope) + b"}\n"
    yield from map(encode_line, payloads)


_head_decoder = msgspec.json.Decoder(_Head)


def decode_head(line: bytes) -> Envelope | None:
    """Return the envelope in a file's first line; None if it is damaged."""
    try:
        head = _head_decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return head.dlq if head.v == 1 else None


def new_name(tenant_id: str | None, *, mixed: bool = False) -> str:
    """Return a name that no other file has: the tenant for the reader's eye, the time, a number."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    part = "mixed" if mixed else _tenant_part(tenant_id)
    return f"{part}_{stamp}_{os.urandom(4).hex()}"


def renamed(name: str) -> str:
    """Return a new name for a file of the same tenant and age."""
    return f"{name.rsplit('_', 1)[0]}_{os.urandom(4).hex()}"


def _tenant_part(tenant_id: str | None) -> str:
    if tenant_id is None:
        return "none"
    readable = _UNSAFE.sub("-", tenant_id.lower()).strip("-.")[:32]
    from hashlib import sha256  # noqa: PLC0415 - loads OpenSSL, which most processes never need

    digest = sha256(tenant_id.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{readable}-{digest}".lstrip("-")


def is_plain(name: str) -> bool:
    """Tell whether *name* names a file of the folder, and leads nowhere else."""
    return bool(name) and not name.startswith(".") and not {"/", "\0"} & {*name}


def split_name(file_name: str) -> tuple[str, State | None]:
    """Return the name and the state of a file on the disk; no state if it is no dead letter."""
    for suffix, state in _STATES.items():
        if file_name.endswith(suffix):
            return file_name.removesuffix(suffix), state
    return file_name, None


def suffix_of(state: State) -> str:
    """Return what a file in *state* is called behind its name."""
    return _SUFFIXES[state]


def age_of(name: str) -> list[str]:
    """Return what to sort by, oldest first: the time and the random part, not the tenant."""
    return name.rsplit("_", 2)[1:]
