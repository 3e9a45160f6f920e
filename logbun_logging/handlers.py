"""The logging face: queue handler, queue listener and batching handler.

They are what :mod:`logging.config` and users of :mod:`logging` see, and real subclasses of the
stdlib's classes, but thin: the handler passes records to the intake, the listener carries them to
its handlers, the batching handler hands their events to the pipeline's buffers.
"""

from __future__ import annotations

import logging
import logging.handlers
import queue
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from logbun_logging.errors import ConfigurationError
from logbun_logging.event import Entry
from logbun_logging.intake import encode_record, make_intake, submit_unqueued
from logbun_logging.queueing import RecordQueue
from logbun_logging.record import AuditRecord
from logbun_logging.reporting import LOGGER_NAME
from logbun_logging.trail import AuditTrail

__all__ = ["AuditQueueHandler", "AuditQueueListener", "BatchingAuditHandler"]

#: Records that the listener hands over between two looks at the clock.
_STEP: Final = 128

#: How often the listener looks after the pipeline while nothing comes in, in seconds.
_TEND: Final = 0.5

#: And how often at most while a lot does: it has to look at every tenant.
_TEND_AGAIN: Final = 0.05


class BatchingAuditHandler(logging.Handler):
    """The end of the queue: hands events to the per-tenant buffers and their flush workers.

    Used as its own ``dictConfig`` entry in the stdlib's form (Python 3.12+), behind an
    :class:`AuditQueueHandler`; attached to a logger directly it works without a queue.

    Args:
        trail: the trail to feed, instead of options.
        **options: the options of :class:`~logbun_logging.AuditTrail`.

    Raises:
        ConfigurationError: an option is not allowed.
    """

    def __init__(self, *, trail: AuditTrail | None = None, **options: Any) -> None:
        super().__init__()
        self.trail = AuditTrail(**options) if trail is None else trail

    def emit(self, record: logging.LogRecord) -> None:
        """Buffer the event of one record."""
        if isinstance(record, AuditRecord) and record.entry is not None:
            self.trail.pipeline.buffer([record.entry])
            return
        if record.name == LOGGER_NAME:
            return
        _submit_to_open(self.trail, record)

    def emit_all(self, queued: list[AuditRecord | Entry], level: int = logging.NOTSET) -> None:
        """Buffer what was queued, but for records that *level* or the filters keep back."""
        passed: list[Entry] = []
        kept_back: list[Entry] = []
        for item in queued:
            if isinstance(item, Entry):
                passed.append(item)
            elif item.entry is not None:
                fits = item.levelno >= level and (not self.filters or self.filter(item))
                (passed if fits else kept_back).append(item.entry)
        self.trail.pipeline.buffer(passed)
        if kept_back:
            self.trail.pipeline.discard(kept_back)

    def flush(self) -> None:
        """Deliver everything logged so far, within ``flush_timeout``."""
        self.trail.flush()

    def close(self) -> None:
        """Shut the trail down, until something is logged again."""
        self.trail.suspend()
        super().close()


class AuditQueueListener(logging.handlers.QueueListener):
    """Carries records from the queue to its handlers on a thread of its own.

    It starts by itself with the first record, survives whatever a handler raises, and may be
    stopped twice.
    """

    queue: Any  # a RecordQueue, or what the user's configuration names
    _sentinel: Any

    def __init__(
        self, queue: Any, *handlers: logging.Handler, respect_handler_level: bool = False
    ) -> None:
        super().__init__(queue, *handlers, respect_handler_level=respect_handler_level)
        self._stopping = threading.Event()

    @property
    def batching(self) -> BatchingAuditHandler:
        """The batching handler among the handlers.

        Raises:
            ConfigurationError: there is none.
        """
        for handler in self.handlers:
            if isinstance(handler, BatchingAuditHandler):
                return handler
        allowed = "one or more handlers, a logbun_logging.BatchingAuditHandler among them"
        raise ConfigurationError("handlers", self.handlers, allowed)

    def start(self) -> None:
        """Start the thread, unless it runs."""
        if self._thread is None or not self._thread.is_alive():
            self._stopping.clear()
            super().start()

    def stop(self, timeout: float | None = None) -> None:
        """Hand over everything that is queued, and end the thread."""
        thread, self._thread = self._thread, None
        self._stopping.set()
        if thread is not None and thread.is_alive():
            self.enqueue_sentinel()
            thread.join(timeout)
        else:
            self._hand_over(self._drain())

    def reset(self) -> None:
        """In a forked child: start anew; what the parent had queued stays the parent's."""
        self._thread = None
        self._stopping = threading.Event()
        if isinstance(self.queue, RecordQueue):
            self.queue = RecordQueue()
        else:
            self._drain()

    def _monitor(self) -> None:
        tend = self.batching.trail.pipeline.tend
        next_tend = 0.0
        while True:
            try:
                record = self.queue.get(True, _TEND)
            except queue.Empty:
                record = None
            records = [] if record is None else [record, *self._drain(_STEP)]
            try:
                self._hand_over(records)
                if (now := time.monotonic()) >= next_tend:
                    next_tend = now + _TEND_AGAIN
                    tend()
            except Exception:  # whatever happens, the thread goes on
                logging.getLogger(LOGGER_NAME).exception("audit listener")
            if self._stopping.is_set() and self.queue.empty():
                return

    def _drain(self, limit: int = sys.maxsize) -> list[Any]:
        records: list[Any] = []
        if isinstance(self.queue, RecordQueue):
            return [record for record in self.queue.drain(limit) if record is not self._sentinel]
        with suppress(queue.Empty):
            while len(records) < limit:
                record = self.queue.get_nowait()
                if record is not self._sentinel:
                    records.append(record)
        return records

    def _hand_over(self, records: list[Any]) -> None:
        if not records:
            return
        for handler in self.handlers:
            level = handler.level if self.respect_handler_level else logging.NOTSET
            if isinstance(handler, BatchingAuditHandler):
                handler.emit_all(records, level)
                continue
            for record in records:
                try:
                    if record.levelno >= level:
                        handler.handle(record)
                except Exception:
                    handler.handleError(record)


class AuditQueueHandler(logging.handlers.QueueHandler):
    """The handler for loggers: takes a record's event over before the call returns.

    Three ways to make one: with the options of :class:`~logbun_logging.AuditTrail`; with
    ``trail=``; or, as ``dictConfig`` of Python 3.12+ does, with a queue, and a listener that is set
    afterwards.

    Args:
        queue: the queue of the third form; the others have their own.
        trail: the trail to feed.
        **options: options of a new trail.

    Raises:
        ConfigurationError: an option is not allowed.
    """

    def __init__(
        self, queue: Any = None, *, trail: AuditTrail | None = None, **options: Any
    ) -> None:
        own = trail is not None or bool(options)
        super().__init__(RecordQueue() if own or queue is None else queue)
        self._trail: AuditTrail | None = None
        self._listener: AuditQueueListener | None = None
        self._emits_itself = type(self).emit is AuditQueueHandler.emit
        self._take_record: Callable[[logging.LogRecord], None] | None = None
        #: Takes a typed call over while the pipeline runs; see :class:`~.intake.Intake`.
        self.take_call: Callable[[Any, dict[str, Any]], bool] | None = None
        if own:
            self._trail = AuditTrail(**options) if trail is None else trail
            self.listener = AuditQueueListener(self.queue, BatchingAuditHandler(trail=self._trail))

    @property
    def listener(self) -> Any:
        """The listener at the other end of the queue."""
        return self._listener

    @listener.setter
    def listener(self, listener: Any) -> None:
        if listener is None or (self._trail is not None and self._listener is not None):
            return  # dictConfig of 3.12+ brings a stock listener to a handler that has its own
        if not isinstance(listener, AuditQueueListener):
            allowed = "logbun_logging.AuditQueueListener"
            raise ConfigurationError("listener", type(listener).__name__, allowed)
        self._trail = listener.batching.trail
        self._listener = listener
        self._trail.pipeline.add_source(self)

    @property
    def trail(self) -> AuditTrail:
        """The trail that this handler feeds.

        Raises:
            ConfigurationError: the handler was made with a queue, and no listener was set yet.
        """
        if self._trail is None:
            allowed = "options of a trail (namespace, adapter, ...), trail=, or a listener"
            raise ConfigurationError("AuditQueueHandler", None, allowed)
        return self._trail

    # ── the application's threads ──

    def handle(self, record: logging.LogRecord) -> bool:
        """Filter and take over a record.

        Unlike the base class this takes no lock: everything behind it is safe without.
        """
        if self.filters:
            verdict = self.filter(record)
            if not verdict:
                return False
            if isinstance(verdict, logging.LogRecord):
                record = verdict
        take = self._take_record
        try:
            if take is not None and self._emits_itself and record.name != LOGGER_NAME:
                take(record)  # what emit comes to
            else:
                self.emit(record)
        except Exception:
            self.handleError(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Take over the event of *record*."""
        if record.name == LOGGER_NAME:
            return  # our own reports, if somebody audits the root logger
        take = self._take_record
        if take is None:
            self.trail.pipeline.start()
            take = self._take_record
        if take is not None:
            take(record)
        else:
            _submit_to_open(self.trail, record)

    # ── a pipeline's source ──

    def start(self) -> None:
        """Start the listener, and take records over."""
        listener, trail = self._listener, self._trail
        if listener is None or trail is None:
            return
        batching = listener.batching
        intake = make_intake(
            trail.pipeline,
            self.queue.put_nowait,
            whole_records=len(listener.handlers) > 1
            or (listener.respect_handler_level and batching.level > logging.NOTSET),
            filters=batching.filters,
        )
        self._take_record = intake.record
        # A subclass that handles or emits in its own way wants to see the record.
        if self._emits_itself and type(self).handle is AuditQueueHandler.handle:
            self.take_call = intake.call
        listener.start()

    def hurry(self) -> None:
        """Let the listener carry over now what is queued."""
        if isinstance(self.queue, RecordQueue):
            self.queue.hurry()

    def refuse(self) -> None:
        """Take no more records over; what comes now goes to the namespace's next trail."""
        self._take_record = self.take_call = None

    def stop(self, timeout: float) -> None:
        """Hand over everything that is queued, and stop the listener."""
        if self._listener is not None:
            self._listener.stop(timeout)

    def reset(self) -> None:
        """In a forked child: start anew with an empty queue."""
        self._take_record = self.take_call = None
        if self._listener is not None:
            self._listener.reset()
            self.queue = self._listener.queue

    # ── logging.shutdown ──

    def flush(self) -> None:
        """Deliver everything logged so far, within ``flush_timeout``."""
        if self._trail is not None:
            self._trail.flush()

    def close(self) -> None:
        """Shut the trail down, until something is logged again."""
        if self._trail is not None:
            self._trail.suspend()
        super().close()


def _submit_to_open(trail: AuditTrail, record: logging.LogRecord) -> None:
    """Submit a record to *trail* or, if that has ended, to the one that has its namespace now.

    One that :mod:`logging` has closed is opened again.
    """
    while trail.pipeline.closing:
        entry = encode_record(trail.pipeline, record)
        successor = trail.keep_late(entry)
        if successor is None:
            # Not under the registry's lock: who configures holds logging's own, and waits for it.
            trail.pipeline.reporter.watch()
            if isinstance(record, AuditRecord):
                record.safe = False
            return
        trail = successor
    submit_unqueued(trail.pipeline, record)
