"""Telling people what goes wrong: the ``on_event`` callback and the ``logbun_logging`` logger.

Both are code of others, which may raise, block, take locks, or call the trail. So a thread of its
own runs them: whoever reports only puts the report into a queue, takes no lock and never waits. The
thread is started with the first report and ends when there has been none for a while.

Log messages are rate-limited for each kind and tenant. The callback hears of everything, unless it
is so slow that the queue gets full: then reports are dropped, counted, and told of later.

What happens on the application's threads is counted there and reported from here, so that an audit
call has nothing to report.
"""

from __future__ import annotations

import _thread
import logging
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from logbun_logging._encoding.messages import masked, one_line
from logbun_logging._engine.report_kinds import REPORTS, describe
from logbun_logging._process.counters import Counters
from logbun_logging._process.forks import awaits_fork
from logbun_logging._process.worker import WorkerThread
from logbun_logging._storage.wal import WalRemovedError
from logbun_logging.options import EventCallback

__all__ = ["LOGGER_NAME", "Reporter"]

#: Audit handlers ignore this logger, so that a report can never become an audit event.
LOGGER_NAME: Final = "logbun_logging"

#: Seconds in which one kind of report is logged once for each tenant ...
_QUIET: Final = 10.0

#: ... and for so many tenants at most.
_TENANTS: Final = 10

#: Reports that may wait for their turn.
_MOST: Final = 1000

#: Characters of one detail that are kept.
_LONGEST: Final = 2000

#: Seconds without a report after which the thread ends.
_IDLE: Final = 5.0

#: Counters that the application's threads raise, and that somebody should hear of.
_WATCHED: Final = (
    "dropped",
    "lost",
    "wal_failures",
    "cut",
    "encode_failures",
    "filter_failures",
    "rendered",
    "unknown_action",
    "unknown_fields",
    "refused_fields",
    "opaque_values",
    "reports_dropped",
)

#: What one of these counters counts, if not events.
_COUNTED: Final = {
    "reports_dropped": "reports",
    "unknown_fields": "names",
    "refused_fields": "names",
}

_logger = logging.getLogger(LOGGER_NAME)


class Reporter:
    """Reports for one namespace.

    Args:
        namespace: named in every message.
        callback: the ``on_event`` option.
        counters: watched for what the application's threads count.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        namespace: str,
        callback: EventCallback | None,
        counters: Counters,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._namespace = namespace
        self._callback = callback
        self._counters = counters
        self._clock = clock
        # Reports, events of threads that wait until all before them is told, and None: look at the
        # counters. A SimpleQueue may be put to at any moment, also in the midst of another put.
        self._queue: queue.SimpleQueue[_Report | threading.Event | None] = queue.SimpleQueue()
        self._running = False  # a thread runs or is being started; written by it and by who starts
        self._owner = 0  # the thread whose turn it is; the last one to start writes it
        self._closed = False
        # Only the thread that tells uses these.
        self._windows: dict[str, _Window] = {}
        self._seen = {name: counters[name] for name in _WATCHED}

    def report(self, name: str, level: int | None = None, /, **details: Any) -> None:
        """Tell of one thing that happened. Returns at once, and never raises.

        After :meth:`close`, when the interpreter starts no more threads, it tells by itself, and in
        a process whose workers are still to be forked: see :mod:`.forks`.

        Args:
            name: the kind.
            level: of the log message, for a kind that :data:`~.report_kinds.REPORTS` does not have.
            **details: for the callback; some are named in the message.
        """
        if self._queue.qsize() < _MOST:
            kept = {key: _safe(key, value) for key, value in details.items()}
            self._queue.put(_Report(name, level, kept))
        else:
            self._counters.add("reports_dropped")
        if not self._start():
            self._tell_if_alone()

    def wal_failed(self, error: OSError, events: int) -> None:
        """Tell of an error of the WAL, and of *events* that are in memory only because of it."""
        name = "wal_failed"
        if isinstance(error, WalRemovedError):
            name = "wal_removed"
            self._counters.add(name)
        self.report(name, events=events, reason=f"{type(error).__name__}: {error}")

    def wal_nearly_full(self, used: int, limit: int) -> None:
        """Tell that the WAL's files come near their bound."""
        self.report("wal_nearly_full", bytes=used, max_bytes=limit)

    def watch(self) -> None:
        """Report what the application's threads have counted since the last time."""
        if self._changed() and self._queue.empty():
            self._queue.put(None)
        if not self._queue.empty() and not self._start():
            self._tell_if_alone()

    def drain(self, timeout: float) -> bool:
        """Wait until everything before this call is told; return whether it is.

        Where no thread can be started, as at the interpreter's end, this thread tells it. On the
        reporter's own thread, where ``on_event`` may have called, this does not wait.

        Args:
            timeout: in seconds.
        """
        if self._owner == threading.get_ident():
            return False
        told = threading.Event()
        self._queue.put(told)
        if not self._start():
            self._tell_queued()
        return told.wait(timeout)

    def close(self, timeout: float) -> None:
        """Tell what is left, within *timeout* seconds, and let the thread end.

        ``dictConfig`` closes handlers while it holds a lock that every log message may need. So it
        does not wait: what is left is told when it has ended.
        """
        self._closed = True
        if self._running or not self._queue.empty() or self._changed():
            self.drain(0.0 if _logging_is_locked() else timeout)

    # ── the thread ──

    def _start(self) -> bool:
        """See to it that there is a thread; return False if none can be started.

        ``Thread.start`` waits for the new thread, and that for locks of :mod:`threading` which a
        signal handler may have found held. So a helper starts it, for which nobody waits.
        """
        if self._running:
            return True
        if sys.is_finalizing() or awaits_fork():
            return False
        self._running = True
        try:
            _thread.start_new_thread(self._launch, ())
        except (RuntimeError, MemoryError):
            self._running = False
            return False
        except BaseException:  # a signal handler has raised
            self._running = False
            raise
        return True

    def _launch(self) -> None:
        try:
            WorkerThread("logbun-reporter", self._run, self._died).start()
        except (RuntimeError, MemoryError):  # no second thread: this one will do
            self._run()

    def _run(self) -> None:
        me = self._owner = threading.get_ident()
        while self._owner == me:  # two callers may each have started one
            try:
                item = self._queue.get(timeout=0.0 if self._closed else _IDLE)
            except queue.Empty:
                self._watch()
                self._running = False
                # Who has put something before that has not started a thread.
                if self._queue.empty() or self._running:
                    break
                self._running = True
            else:
                self._tell(item)
                if self._queue.empty():
                    self._watch()
        if self._owner == me:
            self._owner = 0

    def _died(self, name: str, error: BaseException) -> None:
        self._counters.add("threads_died")
        _complain(f"{name}: {type(error).__name__}: {error}")

    # ── telling ──

    def _tell_if_alone(self) -> None:
        """Tell on this thread if no other ever will: after the end, and where none may be."""
        if self._closed or awaits_fork():
            self._tell_queued()

    def _tell_queued(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._tell(self._queue.get_nowait())
        self._watch()

    def _tell(self, item: _Report | threading.Event | None) -> None:
        if isinstance(item, _Report):
            self._call(item)
            self._log(item)
            return
        self._watch()
        if item is not None:
            item.set()

    def _changed(self) -> bool:
        return any(self._counters[name] != seen for name, seen in [*self._seen.items()])

    def _watch(self) -> None:
        for name in _WATCHED:
            count = self._counters[name]
            new, self._seen[name] = count - self._seen[name], count
            if new > 0:  # what was lost may have been found again
                details: dict[str, Any] = {_COUNTED.get(name, "events"): new}
                if (example := self._counters.example(name)) is not None:
                    details["example"] = example
                report = _Report(name, None, details)
                self._call(report)
                self._log(report)

    def _call(self, report: _Report) -> None:
        if self._callback is None:
            return
        try:
            self._callback(report.name, {"namespace": self._namespace, **report.details})
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}"
            where = _where(error)
            self._log(_Report("on_event_failed", None, {"reason": reason, "where": where}))

    def _log(self, report: _Report) -> None:
        name, details = report.name, report.details
        hidden = self._hidden(name, details.get("tenant_id"))
        if hidden is None:
            return
        # dictConfig disables every logger that is not in it unless told otherwise: that must not
        # silence what nobody else tells. Who wants silence sets a level.
        _logger.disabled = False
        try:
            _logger.log(
                REPORTS[name].level if name in REPORTS else report.level or logging.WARNING,
                "%s: %s [%s]%s",
                self._namespace,
                describe(name, details),
                name,
                f" ({hidden} more like this)" if hidden else "",
                extra={
                    "logbun_kind": name,
                    "logbun_namespace": self._namespace,
                    "logbun_details": details,
                },
            )
        except BaseException as error:  # a filter or handler of the application
            _complain(f"{name} could not be logged: {type(error).__name__}: {error}")

    def _hidden(self, name: str, tenant_id: object) -> int | None:
        """Return how many were not logged before this one, or None if this one is not to be."""
        now = self._clock()
        window = self._windows.get(name)
        if window is None or now - window.since >= _QUIET:
            self._windows[name] = _Window(now, tenant_id)
            return 0 if window is None else window.hidden
        if tenant_id in window.tenants or len(window.tenants) >= _TENANTS:
            window.hidden += 1
            return None
        window.tenants.add(tenant_id)
        return 0


class _Report:
    __slots__ = ("details", "level", "name")

    def __init__(self, name: str, level: int | None, details: dict[str, Any]) -> None:
        self.name = name
        self.level = level
        self.details = details


class _Window:
    """The ten seconds since a kind was logged after a pause: for which tenants it was since."""

    __slots__ = ("hidden", "since", "tenants")

    def __init__(self, since: float, tenant_id: object) -> None:
        self.since = since
        self.tenants = {tenant_id}
        self.hidden = 0


def _logging_is_locked() -> bool:
    """Tell whether this thread holds the lock of :mod:`logging`, which has no public name."""
    is_owned = getattr(getattr(logging, "_lock", None), "_is_owned", None)
    return is_owned is not None and bool(is_owned())


def _safe(key: str, value: Any) -> Any:
    """Return a detail for the callback: short, and without the secrets of a driver's error."""
    if not isinstance(value, str):
        return value
    return (masked(value) if key == "reason" else value)[:_LONGEST]


def _where(error: BaseException) -> str:
    """Return where *error* was raised; its traceback would take more than a line."""
    frames = traceback.extract_tb(error.__traceback__, limit=-1)
    return "".join(f"{frame.filename}:{frame.lineno} ({frame.name})" for frame in frames)


def _complain(text: str) -> None:
    """Write to stderr, as :mod:`logging` does when a handler raises."""
    with suppress(BaseException):
        if logging.raiseExceptions and sys.stderr is not None:
            sys.stderr.write(f"{LOGGER_NAME}: {one_line(text)}\n")
