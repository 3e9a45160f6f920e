"""What stands behind the queue: the listener, and the handler that gives events to the buffers.

Both are real subclasses of the stdlib's classes, as the handler in front of the queue is, which is
in ``handlers``.
"""

from __future__ import annotations

import logging
import logging.handlers
import queue
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeGuard, Unpack

from logbun_logging._encoding.record import AuditRecord
from logbun_logging._engine.intake import encode_record, submit_unqueued
from logbun_logging._engine.queue import RecordQueue, fresh_queue
from logbun_logging._engine.reporting import LOGGER_NAME
from logbun_logging._process.worker import WorkerThread
from logbun_logging.errors import ConfigurationError
from logbun_logging.event import ACTION_AT, Entry
from logbun_logging.options import HandlerOptionsDict
from logbun_logging.trail import AuditTrail

__all__ = ["AuditQueueListener", "BatchingAuditHandler", "overrides", "submit_to_open"]

#: Records that the listener hands over between two looks at the clock.
_STEP: Final = 128

#: How often the listener looks after the pipeline while nothing comes in, in seconds.
_MAINTAIN_WAIT: Final = 0.5

#: And how often at most while a lot does: it has to look at every tenant.
_MAINTAIN_AGAIN: Final = 0.05

#: How an action begins that is a JSON object, in the JSON of its event.
_RENDERED: Final = b'{\\"'


class BatchingAuditHandler(logging.Handler):
    """The end of the queue: hands events to the per-tenant buffers and their flush workers.

    Used as its own ``dictConfig`` entry in the stdlib's form (Python 3.12+), behind an
    :class:`AuditQueueHandler`; attached to a logger directly it works without a queue.

    Args:
        trail: the trail to feed, instead of options.
        **options: see :class:`~logbun_logging.options.HandlerOptionsDict`.

    Raises:
        ConfigurationError: an option is not allowed.
    """

    def __init__(
        self, *, trail: AuditTrail | None = None, **options: Unpack[HandlerOptionsDict]
    ) -> None:
        super().__init__()
        self.trail = AuditTrail(**options) if trail is None else trail
        #: A handler in front of the queue hands every event over itself; set by that at its start.
        self.fed = False

    def handle(self, record: logging.LogRecord) -> bool:
        """Filter a record and buffer its event; what the queue's handler has taken over, once."""
        if self.fed:
            return False
        if self.has_taken(record):
            self.emit_all([record])
            return True
        return bool(super().handle(record))

    def has_taken(self, item: Any) -> TypeGuard[AuditRecord | Entry]:
        """Tell whether the trail has the event of *item* already: queued or copied, not new."""
        if isinstance(item, AuditRecord):
            return item.taken_by == self.trail.options.namespace
        return isinstance(item, Entry)

    def emit(self, record: logging.LogRecord) -> None:
        """Buffer the event of one record."""
        if record.name != LOGGER_NAME:
            submit_to_open(self.trail, record)

    def emit_all(self, queued: Sequence[AuditRecord | Entry], level: int = logging.NOTSET) -> None:
        """Buffer what was queued, but for records that *level* or the filters keep back."""
        passed: list[Entry] = []
        kept_back: list[Entry] = []
        rendered = 0
        for item in queued:
            entry = item if isinstance(item, Entry) else item.entry
            if entry is None or entry.buffered or not entry.admitted:
                continue  # a copy, or handed over already
            passes = isinstance(item, Entry) or (item.levelno >= level and self._passes(item))
            (passed if passes else kept_back).append(entry)
            rendered += entry.payload.startswith(_RENDERED, ACTION_AT)
        if rendered:
            self.trail.pipeline.counters.add("rendered", rendered)
        self.trail.pipeline.buffer(passed)
        if kept_back:
            self.trail.pipeline.discard(kept_back)

    def _passes(self, record: logging.LogRecord) -> bool:
        """Ask the filters; a filter that raises lets the record pass."""
        if not self.filters:
            return True
        try:
            return bool(self.filter(record))
        except BaseException:  # SystemExit as well: the batch that it stands in goes on
            self.trail.pipeline.counters.add("filter_failures")
            self.handleError(record)
            return True

    def flush(self) -> None:
        """Deliver everything logged so far, within ``flush_timeout``."""
        self.trail.flush()

    def close(self) -> None:
        """Shut the trail down, until something is logged again."""
        self.trail.suspend()
        super().close()


class AuditQueueListener(logging.handlers.QueueListener):
    """Carries records from the queue to its handlers on a thread of its own.

    It starts by itself with the first record, survives whatever a handler raises, ends at its
    sentinel, and may be stopped twice.

    Args:
        queue: the handler's queue.
        *handlers: one :class:`BatchingAuditHandler`, and others at will.
        respect_handler_level: give a handler only what its level lets pass.

    Raises:
        ConfigurationError: there is no batching handler among the handlers, or more than one.
    """

    queue: Any  # a RecordQueue, or what the user's configuration names
    _sentinel: Any

    def __init__(
        self, queue: Any, *handlers: logging.Handler, respect_handler_level: bool = False
    ) -> None:
        super().__init__(queue, *handlers, respect_handler_level=respect_handler_level)
        self._stopping = threading.Event()  # set where a full queue takes no sentinel
        self._worker: WorkerThread | None = None  # written by start, stop and reset
        self._ending = False  # stop has been called; written by start and stop
        _ = self.batching

    @property
    def batching(self) -> BatchingAuditHandler:
        """The batching handler among the handlers.

        Raises:
            ConfigurationError: there is none, or more than one.
        """
        found = [handler for handler in self.handlers if isinstance(handler, BatchingAuditHandler)]
        if len(found) == 1:
            return found[0]
        allowed = "handlers with one logbun_logging.BatchingAuditHandler among them"
        raise ConfigurationError("handlers", self.handlers, allowed)

    def start(self) -> None:
        """Start the thread, unless it runs."""
        if self._worker is None or self._worker.done:
            self._stopping.clear()
            self._ending = False
            threads = self.batching.trail.pipeline.threads
            self._worker = threads.start("logbun-listener", self._monitor)

    @property
    def running(self) -> bool:
        """The thread runs."""
        return self._worker is not None and self._worker.alive

    def stop(self, timeout: float | None = None) -> None:
        """Hand over everything that is queued, and end the thread."""
        worker, self._worker = self._worker, None
        self._ending = True
        if worker is not None and worker.alive:
            try:
                self.enqueue_sentinel()
            except Exception:  # the queue is full: the thread ends when it finds it empty
                self._stopping.set()
            worker.join(timeout)
            if worker.alive:
                return
        elif worker is not None:
            worker.done = True  # one that could not be started is not started later
        self._hand_over(self._drain())

    def reset(self) -> None:
        """In a forked child: start anew; what the parent had queued stays the parent's."""
        self._worker = None
        self._stopping = threading.Event()
        self.queue = fresh_queue(self.queue)

    def dequeue(self, block: bool) -> Any:
        """Return the next item of the queue, waiting a while for one if *block*.

        Raises:
            queue.Empty: there was none.
        """
        return self.queue.get(block, _MAINTAIN_WAIT if block else None)

    def substituted(self) -> bool:
        """Tell whether a subclass or a patch carries records in its own way."""
        return overrides(self, _LISTENER_METHODS)

    def _monitor(self) -> None:
        pipeline = self.batching.trail.pipeline
        next_maintenance = 0.0
        ended = False
        while not ended:
            try:
                items, ended = self._next()
                self._hand_over(items)
                if (now := time.monotonic()) >= next_maintenance or self.substituted():
                    next_maintenance = now + _MAINTAIN_AGAIN
                    pipeline.maintain()
            except BaseException as error:  # it goes on until it is to stop
                reason = f"{type(error).__name__}: {error}"
                pipeline.reporter.report("listener_failed", reason=reason)
                self._stopping.wait(_MAINTAIN_AGAIN)  # what fails may fail at every look
                ended = self._ending

    def _next(self) -> tuple[list[Any], bool]:
        """Return the next items, and whether the thread is to end after them."""
        try:
            first = self.dequeue(True)  # noqa: FBT003 - as the standard library calls it
        except queue.Empty:
            return [], self._stopping.is_set()
        items = [first] if self.substituted() else [first, *self._drain(_STEP)]
        return items, any(item is self._sentinel for item in items)

    def _drain(self, limit: int = sys.maxsize) -> list[Any]:
        if isinstance(self.queue, RecordQueue):
            return self.queue.drain(limit)
        items: list[Any] = []
        with suppress(queue.Empty):
            while len(items) < limit:
                items.append(self.queue.get_nowait())
        return items

    def _hand_over(self, items: list[Any]) -> None:
        records = [item for item in items if item is not self._sentinel]
        try:
            if self.substituted():
                self._hand_over_singly(records)
            elif records:
                self._hand_over_together(records)
        finally:
            if (task_done := getattr(self.queue, "task_done", None)) is not None:
                for _ in items:
                    task_done()

    def _hand_over_singly(self, records: list[Any]) -> None:
        """Do what the standard library's listener does."""
        for record in records:
            try:
                self.handle(record)
            except BaseException:  # the trouble of others, whatever they raise
                with suppress(BaseException):
                    self.batching.handleError(record)

    def _hand_over_together(self, records: list[Any]) -> None:
        for handler in self.handlers:
            level = handler.level if self.respect_handler_level else logging.NOTSET
            alone: Iterable[Any] = records
            if isinstance(handler, BatchingAuditHandler):
                taken = [record for record in records if handler.has_taken(record)]
                handler.emit_all(taken, level)
                if len(taken) == len(records):
                    continue
                alone = (record for record in records if not handler.has_taken(record))
            for record in alone:
                if isinstance(record, Entry):
                    continue  # queued before this handler was there
                try:
                    if record.levelno >= level:
                        handler.handle(record)
                except BaseException:  # its own trouble, whatever it raises
                    with suppress(BaseException):
                        handler.handleError(record)


#: What subclasses may override of the way that records go, as it is here.
_LISTENER_METHODS: Final[Mapping[str, Any]] = {
    "dequeue": AuditQueueListener.dequeue,
    "prepare": logging.handlers.QueueListener.prepare,
    "handle": logging.handlers.QueueListener.handle,
}


def overrides(found: object, methods: Mapping[str, Any]) -> bool:
    """Tell whether a subclass or a patch has another one of *methods*."""
    return any(
        getattr(getattr(found, name), "__func__", None) is not ours
        for name, ours in methods.items()
    )


def submit_to_open(trail: AuditTrail, record: logging.LogRecord) -> None:
    """Submit a record to *trail* or, if that has ended, to the one that has its namespace now.

    One that :mod:`logging` has closed is opened again.
    """
    while trail.pipeline.closing:
        entry = encode_record(trail.pipeline.encoder, record)
        taker = trail.keep_late(entry)
        if isinstance(taker, bool):
            # Not under the registry's lock: who configures holds logging's own, and waits for it.
            trail.pipeline.reporter.watch()
            if isinstance(record, AuditRecord):
                record.safe = record.safe and taker
            return
        trail = taker
    submit_unqueued(trail.pipeline, record)
