"""The parts of one namespace put together.

They are started lazily, stopped in order, and made anew after a fork.

An event's way: ``submit`` (application's thread: room, WAL, queue) → a :class:`Source`, the logging
face's queue and listener → ``buffer`` → flush workers → database or DLQ → WAL acknowledged.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from logbun_logging._encoding.encoder import EventEncoder
from logbun_logging._engine.dead_letters import DeadLetterScanner
from logbun_logging._engine.delivery import Delivery
from logbun_logging._engine.flushing import Flusher
from logbun_logging._engine.late import LateEvents
from logbun_logging._engine.maintenance import Maintenance
from logbun_logging._engine.packing import packed
from logbun_logging._engine.recovery import Recovery
from logbun_logging._engine.reporting import Reporter
from logbun_logging._engine.scheduler import Admission, Buffers
from logbun_logging._engine.source import GONE, KEPT, QUEUE, QUEUE_UNSAFE, Source, Submission
from logbun_logging._engine.threads import Threads
from logbun_logging._engine.timed_calls import TimedCalls
from logbun_logging._process import forks
from logbun_logging._process.counters import Counters
from logbun_logging._storage.dlq import DeadLetterQueue
from logbun_logging._storage.namespace import Namespace
from logbun_logging._storage.wal import WalWriter
from logbun_logging._tenancy.databases import Databases, SingleDatabase
from logbun_logging._tenancy.places import Places
from logbun_logging._tenancy.registry import TenantRegistry
from logbun_logging.adapters.base import identity_of
from logbun_logging.adapters.factory import create_adapter
from logbun_logging.errors import AdapterUnavailableError
from logbun_logging.event import Entry
from logbun_logging.options import TrailOptions

__all__ = ["Pipeline"]

#: Flush workers, where the batches of all tenants cannot go in one insert.
_WORKERS: Final = 64

#: How long a caller of a volatile trail waits for the spiller when memory is used up, in seconds.
_SPILL_WAIT: Final = 1.0

#: How often ``flush`` looks whether background work is done, in seconds.
_LOOK: Final = 0.01

#: With fewer events in memory than this, what was spilled can come back.
_CALM: Final = 1000

#: How long ``shutdown`` waits for the database that is being pruned, in seconds; what is left of it
#: then is pruned after the next start.
_RETENTION_WAIT: Final = 2.0

#: How long ``shutdown`` takes beyond its time-out at most, to close what does not hang, in seconds.
_GRACE: Final = 1.0

#: And for each thing in any case.
_CLOSE_WAIT: Final = 0.1

#: How long it waits for flush workers, which may hang in a driver.
_WORKERS_WAIT: Final = 0.5

#: How long ``flush`` waits for a listener where there are no flush workers, in seconds.
_LISTENER_WAIT: Final = 1.0

#: How long ``shutdown`` waits until everything is reported, in seconds.
_REPORT_WAIT: Final = 1.0

_live: weakref.WeakSet[Pipeline] = weakref.WeakSet()


class Pipeline:
    """All that one namespace has in one process.

    Args:
        options: checked options.
    """

    def __init__(self, options: TrailOptions) -> None:
        self.options = options
        self.durable = options.mode == "durable"
        self.sync_each = self.durable and options.fsync == "always"
        self._drop = options.batching.on_queue_full == "drop"
        self._database: str | None = None
        self.databases: Databases = self._databases()
        Namespace(options.folder, options.tenancy.mode, self._database).check()
        self.sources: list[Source] = []
        self._build()
        _live.add(self)

    def _databases(self) -> Databases:
        options = self.options
        if options.tenancy.resolve_connection is None:
            adapter = create_adapter(options.adapter)
            options.retention.check_ttl(getattr(adapter, "retention_days", None))
            self._database = identity_of(adapter)
            return SingleDatabase(adapter)
        from logbun_logging._tenancy.pool import TenantPool  # noqa: PLC0415 - few trails need it

        return TenantPool(
            options.tenancy.resolve_connection,
            options=options.pool,
            registry=TenantRegistry(options.folder / "tenants.ndjson"),
            # An insert may wait as long as insert_timeout for everything, this included.
            patience=options.insert_timeout / 2,
            known=options.retention.tenants,
            report=self._pool_failed,
        )

    def _build(self, counters: Counters | None = None, carried: int = 0) -> None:
        # Here and not above: its scheduler is as much to import as all of ours together.
        from logbun_logging._engine.retention import Retention  # noqa: PLC0415

        options = self.options
        self.counters = Counters() if counters is None else counters
        self.reporter = Reporter(options.namespace, options.on_event, self.counters)
        self.threads = Threads(self.counters, self.reporter)
        self.encoder = EventEncoder(
            options.limits, options.redact, self.counters, options.unknown_fields
        )
        namespace = Namespace(options.folder, options.tenancy.mode, self._database)
        folder, prepare = options.folder / "wal", namespace.held
        make_log = partial(
            WalWriter, folder, options.fsync, options.wal, self.reporter.wal_failed, prepare=prepare
        )
        self.wal = make_log(nearly_full=self.reporter.wal_nearly_full)
        self.dlq = DeadLetterQueue(
            options.folder / "dlq", options.dlq, self._retry_dead_letters, prepare
        )
        places = Places(
            lambda tenant: self.databases.breaker(tenant).proven,
            lambda: self.delivery.hanging,
            options.pool.max_active_connections,
        )
        self.buffers = Buffers(
            options.batching,
            options.limits,
            many=self.databases.shared,
            durable=self.durable,
            counters=self.counters,
            places=places,
            batch_size=lambda: self.delivery.group_size(None),
            carried=carried,
            wake=self._wake,
        )
        timeout, most_hanging = options.insert_timeout, places.most_doubtful
        self.delivery = Delivery(
            self.databases, self.counters, timeout, self._recovered, most_hanging
        )
        self.flusher = Flusher(
            buffers=self.buffers,
            delivery=self.delivery,
            dlq=self.dlq,
            wal=self.wal,
            retry=options.retry,
            tenant_required=options.require_tenant_id,
            counters=self.counters,
            reporter=self.reporter,
        )
        stopping = threading.Event()
        scanner = DeadLetterScanner(
            dlq=self.dlq,
            delivery=self.delivery,
            retry=options.retry,
            tenant_required=options.require_tenant_id,
            counters=self.counters,
            reporter=self.reporter,
            stopping=stopping,
        )
        self.recovery = Recovery(
            folder=options.folder,
            check=namespace.check_note,
            buffers=self.buffers,
            wal=self.wal,
            healthy=lambda: self.opened.is_set() and self.databases.healthy(),
            counters=self.counters,
            reporter=self.reporter,
            stopping=stopping,
        )
        self.maintenance = Maintenance(
            recovery=self.recovery,
            dlq=self.dlq,
            scanner=scanner,
            retry=options.retry,
            open_database=self._bootstrap,
            maintain=self._maintain_alone,
            counters=self.counters,
            reporter=self.reporter,
            stopping=stopping,
        )
        self.retention = Retention(
            folder=options.folder,
            options=options.retention,
            databases=self.databases,
            counters=self.counters,
            reporter=self.reporter,
        )
        self.opened = threading.Event()
        self.bootstrap_error: Exception | None = None
        self.late = LateEvents(options, self.counters, make_log)
        self._flush_failed_at: float | None = None
        self._lost_seen = self.counters["lost"]
        self._next_bootstrap = 0.0
        self._bootstrap_pause = 1.0
        self._own_calls = TimedCalls("logbun-pipeline")
        self._lifecycle = threading.RLock()
        self._finished = threading.Event()
        self._ended_by = 0  # the thread that shuts down; written under _lifecycle
        self.started = False
        self.closing = False

    # ── the application's threads ──

    def submit(self, entry: Entry) -> Submission:
        """Take over an encoded event; the caller queues it if the answer says so."""
        if not self.started or self.threads.missing:
            self.start()
            if not self.started and forks.awaits_fork():
                return KEPT if self.flusher.leave(entry) else GONE
        verdict = self.buffers.admit(entry)
        if verdict == "admitted" and (not self.durable or self.wal.append(entry)):
            return QUEUE
        return self.submit_otherwise(entry, verdict)

    def submit_otherwise(self, entry: Entry, verdict: Admission) -> Submission:
        """Find a place for an event that the WAL could not take, or that memory has no room for."""
        if verdict == "admitted":
            if self.wal.ended:  # the call began before the end, and nobody reads the queue any more
                self.buffers.discard([entry], "lost")
                return KEPT if self.keep_late(entry) else GONE
            self.counters.add("wal_failures")
            return QUEUE_UNSAFE
        if verdict == "drop":
            self.counters.add_all({"accepted": 1, "dropped": 1})
            return GONE
        if self.durable and self.wal.append(entry) and self.wal.defer(entry):
            self.counters.add_all({"accepted": 1, "deferred": 1})
            return KEPT
        wait = 0.0 if self.threads.missing else _SPILL_WAIT
        if self.buffers.admit_later(entry, wait) == "admitted":
            return QUEUE_UNSAFE if self.durable else QUEUE
        self.wal.acknowledge([entry])
        self.counters.add_all({"accepted": 1, "lost": 1})
        return GONE

    def keep_late(self, entry: Entry) -> bool:
        """Keep an event that came after the end; return whether it is where the mode promises."""
        safe = self.late.keep(entry)
        self.late.sync()
        return safe

    def break_off(self, entry: Entry) -> None:
        """Leave nothing half done for a call that a signal handler has ended by raising.

        An admitted event has to be completed, or ``flush`` would wait for it. It may or may not
        have been queued; the buffers take it once.
        """
        if entry.admitted:
            self.buffer([entry])
        else:
            self.wal.acknowledge([entry])

    # ── the listener ──

    def buffer(self, entries: Sequence[Entry]) -> None:
        """Hand queued events over to the flush workers."""
        self.buffers.put(entries)

    def discard(self, entries: Sequence[Entry]) -> None:
        """Let go of queued events that a level or filter behind the queue keeps back."""
        self.wal.acknowledge(entries)
        self.buffers.discard(entries, "filtered")

    def maintain(self) -> None:
        """Wake the WAL thread, spill, report: what the listener does between batches."""
        if self.durable:
            self.wal.wake()
        spilled = self.flusher.spill(drop=self._drop)
        if not spilled and self.buffers.events < _CALM and self.databases.healthy():
            self._ask_back()
        self.threads.maintain()
        self.reporter.watch()

    def _maintain_alone(self) -> None:
        """Do the same where no listener runs."""
        if not any(source.running for source in self.sources):
            self.maintain()

    # ── start and stop ──

    def start(self) -> None:
        """Start the threads, unless they run; the first call to come does it.

        Not in a process of which the workers are still to be forked: see :mod:`.forks`. Threads
        that cannot be started now are tried again: by whatever thread runs, and by each call that
        finds no listener. If none can be had, who flushes delivers.
        """
        with self._lifecycle:
            if self.closing or forks.awaits_fork():
                return
            if self.started:
                self.threads.maintain()
                self._start_sources()
                return
            if self.durable:
                self.wal.open()
            self.started = True
            self._start_threads()
            forks.at_child_exit(self, lambda found: found.shutdown(found.options.flush_timeout))

    def _start_threads(self) -> None:
        self.maintenance.start(self.threads)
        self.retention.start(self.threads)
        if self.durable:
            self.wal.start(self.threads.start)
        self._start_sources()
        # The workers come last: when they run, so does everything that they rely on.
        self.flusher.start(self.threads, 1 if self.databases.shared else _WORKERS)

    def start_if_left(self) -> None:
        """Start now, and not with the first event, if a process has left events in files."""
        log = self.options.folder / "wal"
        with suppress(OSError):  # what cannot be read now is looked at again with the first event
            if (log.is_dir() and any(log.iterdir())) or not self.dlq.is_empty():
                self.start()

    def add_source(self, source: Source) -> None:
        """Take up a queue and its listener."""
        with self._lifecycle:
            if source not in self.sources:
                self.sources.append(source)
            if self.started and not self.closing:
                source.start()

    def _start_sources(self) -> None:
        with self._lifecycle:
            if not self.closing:
                for source in self.sources:
                    source.start()

    def _carry_over(self) -> None:
        """Do here what a listener without a thread would do."""
        for source in self.sources:
            if not source.running:
                source.stop(0.0)
        self._start_sources()

    def _wake(self) -> None:
        for source in self.sources:
            source.wake()

    def flush(self, timeout: float) -> bool:
        """Deliver everything accepted before this call; return whether that was done in time.

        That includes what overload has moved to the DLQ or left to the WAL meanwhile, as long as
        the database takes events, and what recovery still reads.
        """
        if not self.started:
            return True
        with self._lifecycle:  # not while another thread starts it
            self.threads.maintain()
            running = self.flusher.running
        if not running:
            return self._deliver_here()
        deadline = time.monotonic() + timeout
        self._carry_over()
        self._wake()
        while True:
            # Before, because what comes back while we look is in the buffers when we flush them.
            # After, because overload may have moved something aside while we flushed.
            more = self._more_to_come()
            delivered = self.buffers.flush(deadline)
            more = self._more_to_come() or more
            if not delivered or not more or time.monotonic() >= deadline:
                break
            if not self.maintenance.running:  # the thread that does it could not be started yet
                break
            self.maintenance.wake()
            self._finished.wait(_LOOK)
        lost = self._lost_since_last_look()
        delivered = delivered and not (more or self.recovery.deferred() or lost)
        self._flush_failed_at = None if delivered else time.monotonic()
        return delivered

    def _deliver_here(self) -> bool:
        """Deliver on the calling thread: at the interpreter's end there may be no other."""
        for source in self.sources:
            source.stop(_LISTENER_WAIT)
        self._run_here()
        if not self.maintenance.running and self.recovery.deferred():
            if not self.opened.is_set():
                self._open_database()
            self.maintenance.read_back_here(self._run_here)
        self._start_sources()
        return not self.buffers.events and not self.recovery.deferred()

    def _run_here(self) -> None:
        self.buffers.make_all_due()
        self.flusher.run_here()

    def _more_to_come(self) -> bool:
        if self.bootstrap_error is not None or not self.databases.healthy():
            return False  # the rest waits in files until there is a database
        if self.recovery.running or (
            self.recovery.deferred() and not self.maintenance.waits_for_dlq()
        ):
            return True
        self._ask_back()
        return self.maintenance.scanning

    def _lost_since_last_look(self) -> bool:
        """Tell whether events were lost since ``flush`` looked last."""
        before, self._lost_seen = self._lost_seen, self.counters["lost"]
        return self._lost_seen > before

    def _ask_back(self) -> None:
        if self.flusher.spilled:
            self.flusher.spilled = False
            self.maintenance.request_scan()

    def shutdown(self, timeout: float) -> bool:
        """Flush, acknowledge, stop, close; return whether everything was delivered in time.

        What was not is in the WAL or, where there is none, in the DLQ. A second call waits for the
        first, unless it has interrupted that.
        """
        with self._lifecycle:
            first, self.closing = not self.closing, True
            started = self.started
            if first:
                self._ended_by = threading.get_ident()
        if not first:
            # A signal handler, or on_event at the interpreter's end, has interrupted the first.
            interrupted = self._ended_by == threading.get_ident() and not self._finished.is_set()
            return not interrupted and self._finished.wait(timeout)
        if self._flush_failed_at is not None and time.monotonic() - self._flush_failed_at < 1.0:
            timeout = min(timeout, 1.0)  # logging.shutdown: a flush has just used up the time
        deadline = time.monotonic() + timeout
        delivered = True
        try:
            if started:
                delivered = self._stop_parts(deadline)
            self._close(self.databases.close, deadline)
            self._own_calls.close()
        finally:
            self.reporter.close(_REPORT_WAIT)
            self._finished.set()
            _live.discard(self)
        return delivered

    def _stop_parts(self, deadline: float) -> bool:
        self.threads.maintain()
        for source in self.sources:
            source.refuse()
            source.wake()
        self._carry_over()
        if self.flusher.running:
            # The listeners still run: a call that began before they refused is not left behind.
            self.buffers.flush(deadline)
        for source in self.sources:
            source.stop(max(0.1, deadline - time.monotonic()))
        running = self.flusher.running
        delivered = self.buffers.flush(deadline) if running else self._deliver_here()
        if not delivered:
            self._leave_behind(deadline)
        self.threads.close()
        self._close(lambda: self.maintenance.stop(_left(deadline)), deadline)
        if self.recovery.unfinished() or self._lost_since_last_look():
            delivered = False
        self.retention.stop(min(_RETENTION_WAIT, _left(deadline)))
        self.flusher.stop(min(_WORKERS_WAIT, _left(deadline)))
        self.delivery.close()
        self._close(self.wal.close, deadline)
        self._sweep()
        return delivered

    @property
    def finished(self) -> bool:
        """Everything has ended."""
        return self._finished.is_set()

    def reopen(self) -> None:
        """After the end: be as new, but go on counting."""
        self._build(self.counters, self.buffers.accepted)
        for source in self.sources:
            source.reset()
        _live.add(self)

    def _sweep(self) -> None:
        """Keep for the next trail what calls that began before the end have queued since."""
        for source in self.sources:
            source.stop(0.0)
        for _, entries in self.buffers.drain():
            left = [entry for entry in entries if not self.wal.keeps(entry)]
            self.buffers.discard(left, "lost")
            for entry in left:
                self.keep_late(entry)

    def _leave_behind(self, deadline: float) -> None:
        """Write down what is left, file by file, for as long as the disk takes it.

        That may take longer than the time-out. Only a disk that hangs ends it, and then what is
        left counts as lost.
        """
        for together in packed(self.buffers.drain()):
            leave = partial(self.flusher.leave_behind, together)
            if not self._close(leave, max(deadline, time.monotonic())):
                return

    def _close(self, close: Callable[[], object], deadline: float) -> bool:
        """Close something that a disk or a database which hangs would keep from returning.

        It is left behind then, as in a process that is killed: what is in the WAL stays there.
        Returns whether it was done.
        """
        try:
            self._own_calls.run(close, _left(deadline), "closing")
        except AdapterUnavailableError:
            self.reporter.report("close_failed", reason="a disk or database hangs: left behind")
        except Exception as error:
            self.reporter.report("close_failed", reason=f"{type(error).__name__}: {error}")
        else:
            return True
        return False

    # ── callbacks of the parts ──

    def _bootstrap(self) -> bool:
        if self.opened.is_set():
            self.databases.maintain()
            return True
        if time.monotonic() < self._next_bootstrap or self.closing:
            return False
        return self._open_database()

    def _open_database(self) -> bool:
        try:
            self._own_calls.run(self.databases.open, self.options.insert_timeout, "opening")
        except Exception as error:
            self.bootstrap_error = error
            self._next_bootstrap = time.monotonic() + self._bootstrap_pause
            self._bootstrap_pause = min(30.0, self._bootstrap_pause * 2)
            self.counters.add("bootstrap_failures")
            reason = f"{type(error).__name__}: {error}"
            self.reporter.report("bootstrap_failed", reason=reason)
            return False
        self.bootstrap_error = None
        self.opened.set()
        return True

    def _retry_dead_letters(self, name: str | None) -> int:
        self.start()
        return self.maintenance.retry(name)

    def _recovered(self) -> None:
        self.reporter.report("database_recovered")
        self.maintenance.request_scan()

    def _pool_failed(self, name: str, error: BaseException) -> None:
        self.reporter.report(name, reason=f"{type(error).__name__}: {error}")

    # ── fork ──

    def after_fork(self) -> None:
        """In a forked child: let go of everything of the parent's, and be as new."""
        self.wal.abandon()
        self.late.abandon()
        self.maintenance.abandon()
        self.retention.abandon()
        self.databases.after_fork()
        self._build()
        for source in self.sources:
            source.reset()


def _reset_live_pipelines() -> None:
    for pipeline in list(_live):
        pipeline.after_fork()


def _start_live_pipelines_if_left() -> None:
    for pipeline in list(_live):
        pipeline.start_if_left()


forks.register(_reset_live_pipelines)
forks.register_worker(_start_live_pipelines_if_left)


def _left(deadline: float) -> float:
    return max(_CLOSE_WAIT, deadline + _GRACE - time.monotonic())
