"""The queue: what the pipeline puts in and claims, and what an operator may do."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from logbun_logging._storage.dlq.claim import Claim, claim_file, read_pieces
from logbun_logging._storage.dlq.envelope import (
    DlqFile,
    State,
    age_of,
    encode_file,
    is_plain,
    new_envelope,
    new_name,
    suffix_of,
)
from logbun_logging._storage.dlq.listing import Listing
from logbun_logging._storage.files import make_folder, open_regular, sync_folder, write_atomically
from logbun_logging.errors import LogbunError
from logbun_logging.event import AuditEvent, Entry, decode_event, encode_event
from logbun_logging.options import DlqOptions

__all__ = ["DeadLetterQueue", "DlqFullError"]

#: Inside the class ``list`` is its method.
_Events: TypeAlias = list[AuditEvent]
_Files: TypeAlias = "list[DlqFile]"


class DlqFullError(LogbunError):
    """The dead-letter queue has reached ``dlq.max_files`` or ``dlq.max_bytes``."""


class DeadLetterQueue:
    """The files of one namespace's dead-letter queue.

    Args:
        folder: the namespace's ``dlq`` folder; made when first written to.
        options: its bounds.
        retry: tries one file, or all pending ones, and returns the number of events inserted.
        prepare: returns what is entered while a file is written.
    """

    def __init__(
        self,
        folder: Path,
        options: DlqOptions,
        retry: Callable[[str | None], int] = lambda _: 0,
        prepare: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._folder = folder
        self._options = options
        self._retry = retry
        self._prepare = prepare
        self._claims: set[Claim] = set()
        self._lock = threading.Lock()
        self._listing = Listing(folder)
        self._known: tuple[int, int] | None = None  # files and bytes, by our own account
        self._known_at = 0.0
        #: Monotonic seconds when a batch could not be written and no room has been made since.
        self.refused_at = -math.inf

    # ── the pipeline ──

    def put(
        self,
        tenant_id: str | None,
        payloads: Sequence[bytes],
        reason: str,
        *,
        mixed: bool = False,
        tenant_required: bool = False,
    ) -> str:
        """Write a batch and return the file's name.

        Args:
            tenant_id: whose events they are.
            payloads: the events.
            reason: why they come here.
            mixed: they are of several tenants; *tenant_id* is None then.
            tenant_required: they have no tenant where one is required.

        Raises:
            DlqFullError: the queue's bounds are reached.
            OSError: it cannot be written.
        """
        count = len(payloads)
        envelope = new_envelope(
            tenant_id, count, reason, mixed=mixed, tenant_required=tenant_required
        )
        name = new_name(tenant_id, mixed=mixed)
        try:
            with self._prepare():
                self._make_room(sum(map(len, payloads)))
                path = self._folder / (name + suffix_of("pending"))
                write_atomically(path, encode_file(envelope, payloads))
        except (OSError, DlqFullError) as error:
            self.refused_at = time.monotonic()
            if isinstance(error, OSError):
                with self._lock:
                    self._known = None  # what was counted is not there
            raise
        return name

    def put_together(
        self,
        batches: Sequence[tuple[str | None, Sequence[bytes]]],
        reason: str,
        *,
        tenant_required: bool = False,
    ) -> str:
        """Write the batches of one or several tenants into one file and return its name.

        Raises:
            DlqFullError: the queue's bounds are reached.
            OSError: it cannot be written.
        """
        if len(batches) == 1:
            return self.put(*batches[0], reason, tenant_required=tenant_required)
        return self.put(None, [p for _, payloads in batches for p in payloads], reason, mixed=True)

    def _make_room(self, size: int) -> None:
        make_folder(self._folder)
        with self._lock:
            files, total = self._account()
            if files >= self._options.max_files or total + size > self._options.max_bytes:
                raise DlqFullError(
                    f"the dead-letter queue has {files:,} files and {total:,} bytes: allowed are "
                    f"dlq.max_files={self._options.max_files:,} and "
                    f"dlq.max_bytes={self._options.max_bytes:,}"
                )
            self._known = (files + 1, total + size)  # before it is written: others write as well

    def _account(self) -> tuple[int, int]:
        now = time.monotonic()
        if self._known is None or now - self._known_at > 1.0:  # other processes write here as well
            sizes = self._listing.sizes().values()
            self._known, self._known_at = (len(sizes), sum(size for _, size in sizes)), now
        return self._known

    def waiting(self) -> _Files:
        """Return the files to be delivered, oldest first, with those whose claimant may be dead."""
        return [file for file in self.list() if file.state != "dead"]

    def irregular(self) -> Sequence[str]:
        """Return the names of what is called like a dead letter and is no regular file."""
        return self._listing.irregular()

    def claim(self, name: str, state: State) -> Claim | None:
        """Claim one file; None if another process has it or it is gone.

        Raises:
            ValueError: *name* is not the name of a file in the folder.
            OSError: it cannot be opened or renamed.
        """
        claim = claim_file(self._folder, _checked(name), state, self._ended)
        if claim is not None:
            self._claims.add(claim)
        return claim

    def _ended(self, claim: Claim, gone: bool) -> None:
        self._claims.discard(claim)
        with self._lock:
            self._known = None  # counted anew before the next put
        if gone:
            self.refused_at = -math.inf

    def sync(self) -> None:
        """Make the names survive a power cut: without it, delivered files could come back.

        Raises:
            OSError: the folder cannot be synced.
        """
        sync_folder(self._folder)

    def abandon(self) -> None:
        """In a forked child: let go of the parent's claims."""
        self._lock = threading.Lock()
        for claim in [*self._claims]:
            claim.close(inherited=True)
        self._claims.clear()

    def counts(self) -> dict[str, Any]:
        """Return files and events by state, the bytes of all, and why they cannot be read, or None.

        A folder that cannot be read counts as empty.
        """
        counts: dict[str, Any] = {
            "pending": 0,
            "processing": 0,
            "dead": 0,
            "pending_events": 0,
            "processing_events": 0,
            "dead_events": 0,
            "bytes": 0,
            "error": None,
        }
        try:
            files = self._listing.files()
        except OSError as error:  # another user's
            return {**counts, "error": f"{type(error).__name__}: {error}"}
        for file in files:
            counts[file.state] += 1
            counts["bytes"] += file.size
            if file.envelope is not None:
                counts[file.state + "_events"] += file.envelope.count
        return counts

    def is_empty(self) -> bool:
        """Tell whether nothing is pending or being retried."""
        return all(state == "dead" for state, _ in self._listing.sizes().values())

    # ── the operator ──

    def list(self, state: State | None = None) -> _Files:
        """Return the files, oldest first, in one *state* or all."""
        files = [file for file in self._listing.files() if state in (None, file.state)]
        return sorted(files, key=lambda file: age_of(file.name))

    def show(self, name: str) -> _Events:
        """Return the events in a file.

        Raises:
            KeyError: there is no such file.
            ValueError: *name* is not the name of a file in the folder.
            OSError: it cannot be read.
        """
        states: tuple[State, ...] = ("pending", "processing", "dead", "pending")
        for state in states:  # once more, if it was put back while we looked
            try:
                descriptor = open_regular(self._folder / (_checked(name) + suffix_of(state)))
            except FileNotFoundError:
                continue
            with open(descriptor, "rb"):  # noqa: PTH123 - a descriptor
                pieces = read_pieces(descriptor)
                return [decode_event(p.payload) for p in pieces if isinstance(p, Entry)]
        raise KeyError(name)

    def requeue(self, name: str) -> bool:
        """Make a dead file pending again with its attempts at 0; False if it is not dead.

        Raises:
            ValueError: *name* is not the name of a file in the folder.
            OSError: it cannot be written.
        """
        claim = self.claim(name, "dead")
        if claim is None:
            return False
        try:
            fresh = msgspec.structs.replace(claim.envelope(), attempts=0, outages=0)
            claim.fail(fresh, lambda _: True, dead=False)
        finally:
            claim.put_back()  # if that failed
        return True

    def retry(self, name: str | None = None) -> int:
        """Try to insert a pending or dead file now, or all pending ones, oldest first.

        Returns how many events were inserted. A file that fails is treated as by a scan. Without a
        *name*, its attempt counts only if ``retry.scan_interval`` has passed since the last one.

        Args:
            name: the file; all that are pending by default.

        Raises:
            ValueError: *name* is not the name of a file in the folder.
        """
        return self._retry(None if name is None else _checked(name))

    def assign(self, name: str, tenant_id: str) -> str:
        """Give the events of a file that have no tenant one; return the name of their new file.

        Raises:
            LogbunError: the file cannot be had, or some of its events have a tenant.
            ValueError: *name* is not the name of a file in the folder.
            DlqFullError: there is no room for the new file beside the old one.
            OSError: it cannot be read or written.
        """
        claim = self.claim(name, "pending") or self.claim(name, "dead")
        if claim is None:
            raise LogbunError(f"{name} is gone, or is being retried just now")
        try:
            events = [decode_event(entry.payload) for entry in claim.entries()]
            if any(event.tenant_id is not None for event in events):
                raise LogbunError(f"{name} has events that have a tenant")
            owned = [msgspec.structs.replace(event, tenant_id=tenant_id) for event in events]
            # Killed between the two, it leaves both files: the old one's events are refused again.
            new = self.put(tenant_id, [*map(encode_event, owned)], claim.envelope().reason)
            claim.done()
        finally:
            claim.put_back()
        return new

    def delete(self, name: str) -> bool:
        """Remove a pending or dead file with its events for good; False if it cannot be had.

        Raises:
            ValueError: *name* is not the name of a file in the folder.
            OSError: it cannot be removed.
        """
        states: tuple[State, ...] = ("pending", "dead")
        for state in states:
            claim = self.claim(name, state)
            if claim is not None:
                try:
                    claim.done()
                    self.sync()
                finally:
                    claim.put_back()
                return True
        return False


def _checked(name: str) -> str:
    if not is_plain(name):
        raise ValueError(f"{name!r} is not the name of a file in the dead-letter queue")
    return name
