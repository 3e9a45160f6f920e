r"""The dead-letter queue: batches that could not be inserted, as files.

::

    {tenant}_{ts}_{rand}.batch               pending
    {tenant}_{ts}_{rand}.batch.processing    being retried; flock held by who retries
    {tenant}_{ts}_{rand}.batch.dead          poison: given up after too many failed scans

A file is an envelope, one line of JSON, and then one WAL record for each event::

    {"v": 1, "dlq": {"tenant_id": "t1", "count": 2, "attempts": 0, "reason": "...", ...}}\n
    {"v": 1, "crc": "89abcdef", "event": {...}}\n

Files are written whole or not at all. The tenant in the name is for the reader's eye: it is
encoded, two tenants never share it, and it is never parsed back. Several processes share the
folder: a file is claimed by its flock and a rename, and the claim of a process that dies ends with
it.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec

from logbun_logging.errors import LogbunError
from logbun_logging.event import AuditEvent, decode_event, utc_now
from logbun_logging.files import make_folder, open_locked, unlock, write_atomically
from logbun_logging.options import DlqOptions
from logbun_logging.wal.codec import encode_line, entry_of, read_records

__all__ = ["Claim", "DeadLetterQueue", "DlqFile", "DlqFullError", "Envelope"]

State = Literal["pending", "processing", "dead"]

#: Inside the class ``list`` is its method.
_Events: TypeAlias = list[AuditEvent]
_Files: TypeAlias = "list[DlqFile]"

_PENDING: Final = ".batch"
_PROCESSING: Final = ".batch.processing"
_DEAD: Final = ".batch.dead"
_STATES: Final[dict[str, State]] = {
    _PENDING: "pending",
    _PROCESSING: "processing",
    _DEAD: "dead",
}
_UNSAFE: Final = re.compile(r"[^a-z0-9.-]+")


class DlqFullError(LogbunError):
    """The dead-letter queue has reached ``dlq.max_files`` or ``dlq.max_bytes``."""


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a dead-lettered batch.

    Attributes:
        tenant_id: whose events they are.
        count: how many.
        attempts: failed scans so far; an outage of the database does not count.
        reason: the last error, or why the batch was spilled.
        first_failed_at: when it came here (ISO 8601, UTC).
        last_failed_at: when it failed last.
    """

    tenant_id: str | None
    count: int
    attempts: int
    reason: str
    first_failed_at: str
    last_failed_at: str


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


class Claim:
    """A file that this process works on, and nobody else.

    It ends with the first call of :meth:`done`, :meth:`fail` or :meth:`put_back`; later ones do
    nothing.
    """

    def __init__(
        self, queue: DeadLetterQueue, path: Path, descriptor: int, *, dead: bool = False
    ) -> None:
        self._queue = queue
        self._path = path
        self._descriptor = descriptor
        self._was = _DEAD if dead else _PENDING
        self.name = _split(path.name)[0]

    def read(self) -> tuple[Envelope, list[bytes]]:
        """Return the envelope and the events' payloads; damaged records are set aside.

        Raises:
            OSError: the file cannot be read, or damaged records cannot be set aside.
        """
        payloads: list[bytes] = []
        bad: list[bytes] = []
        with self._path.open("rb") as file:
            first = file.readline()
            envelope = _decode_head(first)
            if envelope is None:
                bad.append(first)
            for payload, whole in read_records(file):
                good = whole and entry_of(payload, check=True) is not None
                (payloads if good else bad).append(payload)
        if bad:
            self._queue.set_aside(self.name, bad)
        if envelope is None:
            entry = entry_of(payloads[0]) if payloads else None
            tenant = entry.tenant_id if entry else None
            envelope = new_envelope(tenant, len(payloads), "the envelope was damaged")
        return envelope, payloads

    def done(self) -> None:
        """Remove the file: its events are in the database."""
        if self._descriptor >= 0:
            self._path.unlink(missing_ok=True)
            self._queue.has_room()
            self.close()

    def put_back(self) -> None:
        """Leave the file as it was; where even that fails, as one whose claimant has died."""
        if self._descriptor >= 0:
            with suppress(OSError):
                self._path.rename(self._path.with_name(self.name + self._was))
            self.close()

    def fail(self, envelope: Envelope, payloads: Sequence[bytes], *, dead: bool) -> None:
        """Write what is left, with a new envelope, and leave it pending or dead."""
        if self._descriptor >= 0:
            target = self._path.with_name(self.name + (_DEAD if dead else _PENDING))
            write_atomically(target, _chunks(envelope, payloads))
            self._path.unlink(missing_ok=True)
            self.close()

    def close(self, *, inherited: bool = False) -> None:
        """Give up the lock; one that a forked child has *inherited* stays the parent's."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            if not inherited:
                unlock(descriptor)
            os.close(descriptor)
            self._queue.ended(self)


class DeadLetterQueue:
    """The files of one namespace's dead-letter queue.

    Args:
        folder: the namespace's ``dlq`` folder; made when first written to.
        options: its bounds.
        retry: tries one file, or all pending ones, and returns the number of events inserted.
    """

    def __init__(
        self,
        folder: Path,
        options: DlqOptions,
        retry: Callable[[str | None], int] = lambda _: 0,
    ) -> None:
        self._folder = folder
        self._options = options
        self._retry = retry
        self._claims: set[Claim] = set()
        self._lock = threading.Lock()
        self._envelopes: dict[tuple[str, State, int], Envelope | None] = {}
        self._known: tuple[int, int] | None = None  # files and bytes, by our own account
        self._known_at = 0.0
        #: Monotonic seconds when a batch could not be written and no room has been made since.
        self.refused_at = -math.inf

    # ── the pipeline ──

    def put(self, tenant_id: str | None, payloads: Sequence[bytes], reason: str) -> str:
        """Write a batch and return the file's name.

        Raises:
            DlqFullError: the queue's bounds are reached.
            OSError: it cannot be written.
        """
        try:
            return self._put(tenant_id, payloads, reason)
        except (OSError, DlqFullError):
            self.refused_at = time.monotonic()
            raise

    def _put(self, tenant_id: str | None, payloads: Sequence[bytes], reason: str) -> str:
        make_folder(self._folder)
        size = sum(map(len, payloads))
        with self._lock:
            files, total = self._account()
            if files >= self._options.max_files or total + size > self._options.max_bytes:
                raise DlqFullError(
                    f"the dead-letter queue has {files:,} files and {total:,} bytes: allowed are "
                    f"dlq.max_files={self._options.max_files:,} and "
                    f"dlq.max_bytes={self._options.max_bytes:,}"
                )
            self._known = (files + 1, total + size)  # before it is written: others write as well
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        name = f"{_tenant_part(tenant_id)}_{stamp}_{os.urandom(4).hex()}"
        envelope = new_envelope(tenant_id, len(payloads), reason)
        try:
            write_atomically(self._folder / (name + _PENDING), _chunks(envelope, payloads))
        except OSError:
            with self._lock:
                self._known = None
            raise
        return name

    def claims(self) -> Iterator[Claim]:
        """Claim and yield the pending files, oldest first, and those whose claimant has died.

        Raises:
            OSError: some file could not be claimed; all others have been yielded before.
        """
        problem: OSError | None = None
        for name, state, _ in sorted(self._scan(), key=lambda item: _age(item[0])):
            if state == "dead":
                continue
            try:
                claim = self.claim(name, state)
            except OSError as error:
                problem = error
                continue
            if claim is not None:
                yield claim
        if problem is not None:
            raise problem

    def claim(self, name: str, state: State) -> Claim | None:
        """Claim one file; None if another process has it or it is gone."""
        pending = self._folder / (name + _PENDING)
        processing = self._folder / (name + _PROCESSING)
        path = {"pending": pending, "processing": processing, "dead": self._folder / (name + _DEAD)}
        descriptor = open_locked(path[state])
        if descriptor is None:
            return None
        try:
            if state == "processing":
                if pending.exists() or path["dead"].exists():  # it died after writing the outcome
                    processing.unlink(missing_ok=True)
                    os.close(descriptor)
                    return None
            else:
                path[state].rename(processing)
        except OSError:
            os.close(descriptor)
            raise
        claim = Claim(self, processing, descriptor, dead=state == "dead")
        self._claims.add(claim)
        return claim

    def ended(self, claim: Claim) -> None:
        """Forget a claim, and count the files anew before the next ``put``."""
        self._claims.discard(claim)
        with self._lock:
            self._known = None

    def has_room(self) -> None:
        """Note that a file has gone."""
        self.refused_at = -math.inf

    def abandon(self) -> None:
        """In a forked child: let go of the parent's claims."""
        self._lock = threading.Lock()
        for claim in [*self._claims]:
            claim.close(inherited=True)

    def set_aside(self, name: str, bad: Sequence[bytes]) -> None:
        """Keep damaged records in a ``.corrupt`` file."""
        chunks = [data if data.endswith(b"\n") else data + b"\n" for data in bad]
        write_atomically(self._folder / (name + ".corrupt"), chunks)

    def counts(self) -> dict[str, int]:
        """Return files and events by state, and the bytes of all."""
        counts = {
            "pending": 0,
            "processing": 0,
            "dead": 0,
            "pending_events": 0,
            "processing_events": 0,
            "dead_events": 0,
            "bytes": 0,
        }
        for file in self._files():
            counts[file.state] += 1
            counts["bytes"] += file.size
            if file.envelope is not None:
                counts[file.state + "_events"] += file.envelope.count
        return counts

    def is_empty(self) -> bool:
        """Tell whether nothing is pending or being retried."""
        return all(state == "dead" for _, state, _ in self._scan())

    # ── the operator ──

    def list(self, state: State | None = None) -> _Files:
        """Return the files, oldest first, in one *state* or all."""
        files = [file for file in self._files() if state in (None, file.state)]
        return sorted(files, key=lambda file: _age(file.name))

    def show(self, name: str) -> _Events:
        """Return the events in a file.

        Raises:
            KeyError: there is no such file.
        """
        try:
            file = self._find(name).open("rb")
        except FileNotFoundError:
            raise KeyError(name) from None
        with file:
            file.readline()
            return [
                decode_event(payload)
                for payload, whole in read_records(file)
                if whole and entry_of(payload, check=True) is not None
            ]

    def requeue(self, name: str) -> bool:
        """Make a dead file pending again with its attempts at 0; False if it is not dead.

        Raises:
            OSError: it cannot be written.
        """
        claim = self.claim(name, "dead")
        if claim is None:
            return False
        try:
            envelope, payloads = claim.read()
            claim.fail(msgspec.structs.replace(envelope, attempts=0), payloads, dead=False)
        finally:
            claim.put_back()  # if that failed
        return True

    def retry(self, name: str | None = None) -> int:
        """Try to insert a pending or dead file now, or all pending ones, oldest first.

        Returns how many events were inserted. A file that fails is treated as by a scan.

        Args:
            name: the file; all that are pending by default.
        """
        return self._retry(name)

    def delete(self, name: str) -> bool:
        """Remove a pending or dead file with its events for good; False if it cannot be had."""
        for state in ("pending", "dead"):
            claim = self.claim(name, state)
            if claim is not None:
                claim.done()
                return True
        return False

    def _find(self, name: str) -> Path:
        for suffix in _STATES:
            path = self._folder / (name + suffix)
            if path.exists():
                return path
        raise KeyError(name)

    def _scan(self) -> Iterator[tuple[str, State, int]]:
        try:
            with os.scandir(self._folder) as found:
                entries = list(found)
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            name, state = _split(entry.name)
            if state is not None:
                with suppress(FileNotFoundError):
                    yield name, state, entry.stat().st_size

    def _files(self) -> _Files:
        """Return all files; an envelope is read once for each size that its file has had.

        One that is renamed while we look may be seen under both names: it is one all the same.
        """
        files: dict[str, DlqFile] = {}
        seen: dict[tuple[str, State, int], Envelope | None] = {}
        for key in self._scan():
            name, state, size = key
            if key not in self._envelopes:
                with suppress(OSError), (self._folder / (name + _suffix(state))).open("rb") as file:
                    seen[key] = _decode_head(file.readline())
            else:
                seen[key] = self._envelopes[key]
            if name not in files or state != "processing":
                files[name] = DlqFile(name, state, size, seen.get(key))
        self._envelopes = seen
        return [*files.values()]

    def _account(self) -> tuple[int, int]:
        now = time.monotonic()
        if self._known is None or now - self._known_at > 1.0:  # other processes write here as well
            sizes = [size for _, _, size in self._scan()]
            self._known, self._known_at = (len(sizes), sum(sizes)), now
        return self._known


def new_envelope(tenant_id: str | None, count: int, reason: str) -> Envelope:
    """Return the envelope of a batch that failed just now."""
    now = utc_now()
    return Envelope(
        tenant_id=tenant_id,
        count=count,
        attempts=0,
        reason=reason[:2000],
        first_failed_at=now,
        last_failed_at=now,
    )


def _chunks(envelope: Envelope, payloads: Sequence[bytes]) -> Iterator[bytes]:
    sized = msgspec.structs.replace(envelope, count=len(payloads))
    yield b'{"v": 1, "dlq": ' + msgspec.json.encode(sized) + b"}\n"
    for payload in payloads:
        yield encode_line(payload)


_head_decoder = msgspec.json.Decoder(_Head)


def _decode_head(line: bytes) -> Envelope | None:
    try:
        head = _head_decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return head.dlq if head.v == 1 else None


def _tenant_part(tenant_id: str | None) -> str:
    if tenant_id is None:
        return "none"
    readable = _UNSAFE.sub("-", tenant_id.lower()).strip("-.")[:32]
    from hashlib import sha256  # noqa: PLC0415 - loads OpenSSL, which most processes never need

    digest = sha256(tenant_id.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{readable}-{digest}".lstrip("-")


def _split(file_name: str) -> tuple[str, State | None]:
    for suffix, state in _STATES.items():
        if file_name.endswith(suffix):
            return file_name.removesuffix(suffix), state
    return file_name, None


def _suffix(state: State) -> str:
    return next(suffix for suffix, known in _STATES.items() if known == state)


def _age(name: str) -> list[str]:
    """Return what to sort by: the time and the random part, not the tenant."""
    return name.rsplit("_", 2)[1:]
