"""The logging face: queue handler, queue listener and batching handler.

They are what :mod:`logging.config` and users of :mod:`logging` see, and real subclasses of the
stdlib's classes, but thin: the handler, which is here, passes records to the intake, the listener
carries them to its handlers, the batching handler hands their events to the pipeline's buffers.
"""

from __future__ import annotations

import logging
import logging.handlers
import queue
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Unpack

from logbun_logging._encoding.record import AuditRecord
from logbun_logging._engine.intake import Intake, make_intake
from logbun_logging._engine.queue import RecordQueue
from logbun_logging._engine.reporting import LOGGER_NAME
from logbun_logging._process.forks import notice_fork
from logbun_logging.errors import ConfigurationError
from logbun_logging.event import Entry
from logbun_logging.listener import (
    AuditQueueListener,
    BatchingAuditHandler,
    overrides,
    submit_to_open,
)
from logbun_logging.options import HandlerOptionsDict
from logbun_logging.trail import AuditTrail

__all__ = ["AuditQueueHandler", "AuditQueueListener", "BatchingAuditHandler"]

#: How a queue says that it takes no more: full, or shut down (3.13).
_REFUSED: Final = (queue.Full, getattr(queue, "ShutDown", queue.Full))

_StockQueue: Final = queue.Queue

#: Packages whose queues pickle what they carry.
_COPYING: Final = frozenset({"billiard", "multiprocess", "multiprocessing"})


class AuditQueueHandler(logging.handlers.QueueHandler):
    """The handler for loggers: takes a record's event over before the call returns.

    Three ways to make one: with the options of :class:`~logbun_logging.AuditTrail`; with
    ``trail=``; or, as ``dictConfig`` of Python 3.12+ does, with a queue, and a listener that is set
    afterwards.

    Subclasses may override what the standard library lets them: ``prepare``, ``enqueue``, ``emit``
    and ``handle``, and ``dequeue``, ``prepare`` and ``handle`` of the listener. The event is then
    made of the record that ``prepare`` returns, and is stored whatever becomes of the record after
    that.

    Args:
        queue: the queue of the third form; the others have their own. One of this process: what is
            in it is not copied. It may be bounded.
        trail: the trail to feed.
        **options: options of a new trail; see
            :class:`~logbun_logging.options.HandlerOptionsDict`.

    Raises:
        ConfigurationError: an option is not allowed, or there is none.
    """

    def __init__(
        self,
        queue: Any = None,
        *,
        trail: AuditTrail | None = None,
        **options: Unpack[HandlerOptionsDict],
    ) -> None:
        own = trail is not None or bool(options)
        stock_put = not overrides(self, {"enqueue": logging.handlers.QueueHandler.enqueue})
        _check_queue(queue, own=own, stock_put=stock_put)
        self._trail: AuditTrail | None = None
        self._listener: AuditQueueListener | None = None
        super().__init__(RecordQueue() if own else queue)
        self._take_record: Callable[[logging.LogRecord], None] | None = None
        self._intake: Intake | None = None  # made anew with each listener; written by start
        #: Takes a typed call over while the pipeline runs; see :class:`~.intake.Intake`.
        self.take_call: Callable[[Any, dict[str, Any]], bool] | None = None
        self._own = own
        self._emits_itself = type(self).emit is AuditQueueHandler.emit
        if own:
            self._trail = AuditTrail(**options) if trail is None else trail
            self._attach(AuditQueueListener(self.queue, BatchingAuditHandler(trail=self._trail)))

    @property
    def listener(self) -> Any:
        """The listener at the other end of the queue.

        It may be replaced by another one of the same queue and trail.

        Raises:
            ConfigurationError: it is none of ours, reads another queue, or feeds another trail.
        """
        return self._listener

    @listener.setter
    def listener(self, listener: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        if listener is self._listener:
            return
        stock = type(listener) is logging.handlers.QueueListener and not listener.handlers
        if self._own and stock:
            return  # dictConfig of 3.12+ brings it to a handler that has its own
        if not isinstance(listener, AuditQueueListener):
            allowed = "logbun_logging.AuditQueueListener"
            raise ConfigurationError("listener", type(listener).__name__, allowed)
        if listener.queue is not self.queue:
            raise ConfigurationError("listener", listener, "a listener of the handler's own queue")
        if self._trail not in {None, listener.batching.trail}:
            raise ConfigurationError("listener", listener, "a listener of the handler's own trail")
        self._attach(listener)

    def _attach(self, listener: AuditQueueListener) -> None:
        before, self._listener = self._listener, listener
        self._intake = None
        if before is not None:
            before.stop()
        self._trail = listener.batching.trail
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
        notice_fork()
        if self._take_record is None:
            if self.trail.pipeline.closing:
                self.trail.reopened()
            self.trail.pipeline.start()  # also what could not be started before
        intake = self._intake
        if intake is not None:
            intake.record(record)
        else:
            submit_to_open(self.trail, record)

    def prepare(self, record: logging.LogRecord) -> Any:
        """Return a copy of *record* for the handlers behind the queue; see :meth:`AuditRecord.of`.

        The formatter plays no part in it: the message is the event's action.
        """
        return AuditRecord.of(record)

    # ── a pipeline's source ──

    def start(self) -> None:
        """Start the listener, and take records over."""
        listener, trail = self._listener, self._trail
        if listener is None or trail is None:
            return
        if self._intake is None:
            self._intake = self._make_intake(listener, trail)
        listener.start()
        if not listener.running:
            return  # each call comes here first then, and tries again
        self._take_record = self._intake.record
        # A subclass that handles or emits in its own way wants to see the record.
        if self._emits_itself and type(self).handle is AuditQueueHandler.handle:
            self.take_call = self._intake.call

    @property
    def running(self) -> bool:
        """The listener's thread runs."""
        return self._listener is not None and self._listener.running

    def _make_intake(self, listener: AuditQueueListener, trail: AuditTrail) -> Intake:
        batching = listener.batching
        batching.fed = self._substituted() or listener.substituted()
        put = self.queue.put_nowait if isinstance(self.queue, RecordQueue) else self._put
        return make_intake(
            trail.pipeline,
            self._put_apart if batching.fed else put,
            partial(AuditQueueHandler.emit, self),
            copy=self._copy if batching.fed else AuditRecord.of,
            whole_records=batching.fed
            or len(listener.handlers) > 1
            or (listener.respect_handler_level and batching.level > logging.NOTSET),
            filters=batching.filters,
        )

    def _substituted(self) -> bool:
        return overrides(self, _HANDLER_METHODS)

    def _copy(self, record: logging.LogRecord) -> AuditRecord:
        """Return what a subclass's ``prepare`` makes of *record*, as an audit record."""
        try:
            prepared = self.prepare(record)
        except Exception:
            self.handleError(record)
            return AuditRecord.of(record)
        if isinstance(prepared, AuditRecord) and prepared is not record:
            return prepared
        copied = AuditRecord.of(prepared if isinstance(prepared, logging.LogRecord) else record)
        copied.prepared = prepared
        return copied

    def _put(self, item: AuditRecord | Entry) -> None:
        """Queue *item*; where a bounded queue is full, hand its event over at once."""
        try:
            self.queue.put_nowait(item)
        except _REFUSED:
            self._buffer(item)
            if isinstance(item, AuditRecord) and len(self.listener.handlers) > 1:
                self.handleError(item)  # the other handlers miss it, as in the standard library

    def _put_apart(self, item: Any) -> None:
        """Hand the event over at once, and queue the record in the subclass's way."""
        self._buffer(item)
        try:
            self.enqueue(item if item.prepared is None else item.prepared)
        except Exception:
            self.handleError(item)

    def _buffer(self, item: AuditRecord | Entry) -> None:
        listener = self._listener
        if listener is not None:
            level = listener.batching.level if listener.respect_handler_level else logging.NOTSET
            listener.batching.emit_all([item], level)

    def wake(self) -> None:
        """Let the listener carry over now what is queued."""
        if isinstance(self.queue, RecordQueue):
            self.queue.wake()

    def refuse(self) -> None:
        """Take no more records over; what comes now goes to the namespace's next trail."""
        self._take_record = self.take_call = self._intake = None

    def stop(self, timeout: float) -> None:
        """Hand over everything that is queued, and stop the listener."""
        if self._listener is not None:
            self._listener.stop(timeout)

    def reset(self) -> None:
        """In a forked child: start anew with an empty queue."""
        self._take_record = self.take_call = self._intake = None
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


#: What subclasses may override of the way that records go, as it is here.
_HANDLER_METHODS: Final[Mapping[str, Any]] = {
    "prepare": AuditQueueHandler.prepare,
    "enqueue": logging.handlers.QueueHandler.enqueue,
}


def _check_queue(queue: Any, *, own: bool, stock_put: bool) -> None:
    """Refuse a queue that would be ignored, that copies or takes nothing, or none at all.

    With *stock_put* the standard library's handler puts into it; a subclass may do it otherwise.

    Raises:
        ConfigurationError: with what is allowed.
    """
    if own:
        # dictConfig of 3.12+ brings a queue of its own where none is named.
        if queue is not None and (type(queue) is not _StockQueue or queue.maxsize > 0):
            raise ConfigurationError("queue", queue, "absent beside the options of a trail")
        return
    if queue is None:
        allowed = "options of a trail (namespace, adapter, ...), trail=, or a queue and a listener"
        raise ConfigurationError.missing("namespace", allowed)
    packages = {kind.__module__.partition(".")[0] for kind in type(queue).__mro__}
    if packages & _COPYING:
        raise ConfigurationError(
            "queue",
            queue,
            "a queue of this process (queue.Queue, queue.SimpleQueue); each process has a handler"
            " and a trail of its own, and they may share a namespace",
            problem="what it carries is copied, and a copy has no place in the WAL",
        )
    if stock_put and not callable(getattr(queue, "put_nowait", None)):
        raise ConfigurationError("queue", queue, "an object with put_nowait, as queue.Queue has")
