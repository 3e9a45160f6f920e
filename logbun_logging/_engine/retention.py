"""Retention: pruning what is older than allowed, in every database, at a cron expression's times.

A daemon thread runs a ``schedule`` job whose next time comes from ``cronsim``, in UTC. Of several
processes of a namespace one does each run: it holds the flock of ``retention.json`` meanwhile, and
leaves in it up to when the schedule is done. So a second process does not do the same again, and a
time at which no process was running is made up for at the next start.

A wrong clock must not remove what is not old: what ``clock`` doubts is not pruned by. The clocks
are passed in.

The pipeline starts and stops it; :meth:`Retention.prune` is also ``trail.prune()``.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import schedule
from cronsim import CronSim
from msgspec.structs import replace

from logbun_logging._engine.clock import PROBATION, Belief, ClockWatch, running_time, utc_clock
from logbun_logging._engine.reporting import Reporter
from logbun_logging._engine.threads import Threads
from logbun_logging._engine.timed_calls import TimedCalls
from logbun_logging._process.counters import Counters
from logbun_logging._process.worker import WorkerThread
from logbun_logging._storage.files import PRIVATE_FILE, make_folder, try_lock
from logbun_logging._tenancy.databases import Databases, NoDatabaseError, Target
from logbun_logging.adapters.base import PruneReport
from logbun_logging.errors import ClockError, PruneError
from logbun_logging.event import utc_text
from logbun_logging.options import RetentionOptions
from logbun_logging.query import ALL_TENANTS, Filters, Pagination

__all__ = ["Retention"]

#: How long the thread sleeps at most, in seconds: the wall clock may be set meanwhile.
_LONGEST_SLEEP: Final = 60.0

#: When to look again whether another process has done what it was doing, in seconds.
_LOOK_AGAIN: Final = 60.0

#: How long a time that was believed is good enough in the file: it is not written with each look.
_FRESH: Final = timedelta(hours=1)

T = TypeVar("T")


class Retention:
    """Prunes the databases of one namespace.

    Args:
        folder: the namespace's folder; ``retention.json`` is in it.
        options: what to keep for how long, and when to prune.
        databases: what to prune.
        counters: told of rows and failures.
        reporter: told of failures.
        clock: returns the time, in UTC.
        running: seconds of a clock that nobody sets, by which one that is set is noticed.
    """

    def __init__(
        self,
        *,
        folder: Path,
        options: RetentionOptions,
        databases: Databases,
        counters: Counters,
        reporter: Reporter,
        clock: Callable[[], datetime] = utc_clock,
        running: Callable[[], float] = running_time,
    ) -> None:
        self._path = folder / "retention.json"
        self._options = options
        self._databases = databases
        self._counters = counters
        self._reporter = reporter
        self._clock = clock
        self._watch = ClockWatch(clock, running, _leap(options))
        self._calls = TimedCalls("logbun-prune", "retention.timeout")
        self._stopping = threading.Event()
        self._worker: WorkerThread | None = None  # written by start alone
        self._descriptor = -1
        self._scheduler = schedule.Scheduler()
        self._job = _CronJob(options.cron, clock, self._scheduler)
        self._job.do(self._run_scheduled)

    @property
    def configured(self) -> bool:
        """There is something to prune."""
        return self._options.days is not None or bool(self._options.tenants)

    # ── the schedule ──

    def start(self, threads: Threads) -> None:
        """Start the thread, if there is something to prune."""
        if self.configured:
            self._worker = threads.start("logbun-retention", self._run)

    def stop(self, timeout: float) -> None:
        """End the thread after the database that it prunes, or leave it behind after *timeout*."""
        self._stopping.set()
        if self._worker is not None:
            self._worker.join(timeout)

    def abandon(self) -> None:
        """In a forked child: let go of the parent's lock, which stays the parent's."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _run(self) -> None:
        self.catch_up()
        while not self._stopping.wait(min(_LONGEST_SLEEP, self._job.seconds_left())):
            self.wake_up()

    def wake_up(self) -> None:
        """Look at the clock, and do what is due."""
        with suppress(OSError):  # which the next run reports
            self._with_lock(self._look)
        self.run_pending()

    def catch_up(self) -> None:
        """Make up for a scheduled time at which no process of the namespace was running.

        With the first start of all nothing is missed; its time is noted for the next one.
        """
        try:
            done_up_to = self._with_lock(self._begin)
        except OSError as error:
            self._failed(None, error)
            return
        if done_up_to is not None and done_up_to < self._job.last_time():
            self._job.run()

    def run_pending(self) -> None:
        """Do the scheduled run if its time has come; whatever goes wrong, the schedule goes on."""
        self._scheduler.run_pending()

    def _run_scheduled(self) -> bool:
        """Prune unless another process does or did; return whether that is settled."""
        due = self._job.last_time()
        try:
            settled = self._with_lock(lambda stamp: self._run_locked(stamp, due))
        except BaseException as error:  # the folder is gone, a driver exits: tried at the next time
            self._failed(None, error)
            return True
        return bool(settled)

    def _run_locked(self, stamp: _Stamp, due: datetime) -> bool:
        now, stamp = self._look(stamp)
        if stamp.done_up_to is not None and due <= stamp.done_up_to <= now:
            return True  # one of the future is none
        try:
            stamp = self._settle(stamp, now)
        except ClockError as error:
            self._failed(None, error)
            return True
        report, _ = self._prune_all(now, dry_run=False)
        if self._stopping.is_set():
            return True  # without a stamp: the next start makes up for it
        self._write(replace(stamp, done_up_to=due))
        self._reporter.report("pruned", rows=sum(report.values()), databases=len(report))
        return True

    # ── one process of several ──

    def _with_lock(self, work: Callable[[_Stamp], T]) -> T | None:
        """Return what *work* makes of the stamp; None if another process holds the lock."""
        make_folder(self._path.parent)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, PRIVATE_FILE)
        try:
            if not try_lock(descriptor):
                return None
            self._descriptor = descriptor
            try:
                return work(_read(descriptor))
            finally:
                self._descriptor = -1
                # By hand: a child forked meanwhile may have the descriptor and so the lock, too.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            os.close(descriptor)

    def _begin(self, stamp: _Stamp) -> datetime:
        now, stamp = self._look(stamp)
        if stamp.done_up_to is None or stamp.done_up_to > now:
            self._write(replace(stamp, done_up_to=now))
            return now
        return stamp.done_up_to

    def _write(self, stamp: _Stamp) -> None:
        """Note what is known; torn, it counts as never written."""
        data = msgspec.json.encode(stamp) + b"\n"
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, data, 0)
        os.fdatasync(self._descriptor)

    # ── the clock ──

    def _look(self, stamp: _Stamp) -> tuple[datetime, _Stamp]:
        """Look at the clock and note, under the lock, what is known of it now."""
        now, belief = self._watch.look(stamp.clock)
        old = stamp.clock
        seen = replace(stamp, clock=belief)
        if (
            old is None
            or old.doubted_since != belief.doubted_since
            or abs(belief.believed - old.believed) >= _FRESH
        ):
            self._write(seen)
        return now, seen

    def _settle(self, stamp: _Stamp, now: datetime, *, trust: bool = False) -> _Stamp:
        """Return the stamp with a clock that is believed.

        Raises:
            ClockError: the clock is in doubt, and nothing speaks for it.
        """
        belief = stamp.clock
        if belief is None or belief.doubted_since is None:
            return stamp
        if not trust and not (now > belief.believed and self._supported(belief.doubted_since)):
            raise ClockError(_doubt(now, belief, belief.doubted_since))
        return replace(stamp, clock=Belief(believed=now))

    def _supported(self, since: datetime) -> bool:
        """Tell whether events were stored shortly before a clock in doubt was first seen.

        By another machine, or while nothing was pruned here. What was stored less than an hour
        before may be by the clock in doubt itself.
        """
        filters = Filters(start=utc_text(since - self._watch.leap), end=utc_text(since - _FRESH))

        def look(tenant_id: str | None, target: Target) -> bool:
            scope = ALL_TENANTS if tenant_id is None else tenant_id
            return bool(target.adapter.query(scope, filters, Pagination(limit=1)))

        found = False
        for tenant_id, lease in self._databases.every():
            if found or self._stopping.is_set():
                break
            with suppress(Exception):  # the run itself reports what goes wrong there
                found = self._call(tenant_id, lease, look)
        self._calls.close()
        return found

    def _judge(self, *, trust: bool) -> datetime:
        """Return the time by which to prune by hand.

        Raises:
            ClockError: the clock is in doubt.
        """

        def settle(stamp: _Stamp) -> datetime:
            now, stamp = self._look(stamp)
            settled = self._settle(stamp, now, trust=trust)
            if settled != stamp:
                self._write(settled)
            return now

        stamp = _Stamp()
        with suppress(OSError):  # only the schedule needs the file
            now = self._with_lock(settle)
            if now is not None:
                return now
            stamp = _peek(self._path)  # another process has the lock, and writes it
        now, belief = self._watch.look(stamp.clock)
        self._settle(replace(stamp, clock=belief), now, trust=trust)
        return now

    # ── pruning ──

    def prune(self, *, dry_run: bool = False, trust_clock: bool = False) -> PruneReport:
        """Prune every database now and return the rows removed, by tenant.

        Args:
            dry_run: only count what would go.
            trust_clock: the clock is right, whatever speaks against it.

        Raises:
            PruneError: some databases could not be pruned; all others were. None was if the
                failure is a :class:`~logbun_logging.errors.ClockError`.
        """
        if not self.configured:
            return {}
        try:
            now = self._judge(trust=trust_clock)
        except ClockError as error:
            self._failed(None, error)
            raise PruneError({}, {None: error}) from error
        report, failures = self._prune_all(now, dry_run=dry_run)
        if failures:
            raise PruneError(report, failures)
        return report

    def _prune_all(
        self, now: datetime, *, dry_run: bool
    ) -> tuple[PruneReport, dict[str | None, Exception]]:
        report: PruneReport = {}
        failures: dict[str | None, Exception] = {}
        try:
            for tenant_id, lease in self._databases.every():
                if self._stopping.is_set():
                    break
                try:
                    report.update(self._prune_one(tenant_id, lease, now, dry_run=dry_run))
                except NoDatabaseError:
                    report[tenant_id] = 0
                except Exception as error:  # one database's trouble is none of the others
                    if self._stopping.is_set():
                        break  # the adapters are being closed: not a failure
                    failures[tenant_id] = error
                    self._failed(tenant_id, error)
        except OSError as error:  # the list of tenants cannot be read
            failures[None] = error
            self._failed(None, error)
        self._calls.close()  # no thread waits for the next run
        return report, failures

    def _prune_one(
        self,
        tenant_id: str | None,
        lease: AbstractContextManager[Target],
        now: datetime,
        *,
        dry_run: bool,
    ) -> PruneReport:
        days, tenants = self._limits(tenant_id)
        if days is None and not tenants:
            return {}

        def prune(_: str | None, target: Target) -> PruneReport:
            found = target.adapter.prune(days, tenants=tenants, dry_run=dry_run, now=now)
            if not dry_run:
                self._counters.add("pruned", sum(found.values()))
            return found

        return self._call(tenant_id, lease, prune)

    def _call(
        self,
        tenant_id: str | None,
        lease: AbstractContextManager[Target],
        work: Callable[[str | None, Target], T],
    ) -> T:
        """Return what *work* makes of a database, unless that takes too long.

        A call that hangs keeps its thread and its lease; the other databases are pruned.
        """

        def call() -> T:
            with lease as target:
                return work(tenant_id, target)

        result: T = self._calls.run(call, self._options.timeout, tenant_id)
        return result

    def _limits(self, tenant_id: str | None) -> tuple[int | None, Mapping[str, int]]:
        """Return the days for a database, and those for single tenants in it."""
        if tenant_id is None:
            return self._options.days, self._options.tenants
        # Only this tenant's rows, even in his own database: should a resolver give two tenants the
        # same one, then neither must be pruned by the other's days.
        days = self._options.tenants.get(tenant_id, self._options.days)
        return None, {} if days is None else {tenant_id: days}

    def _failed(self, tenant_id: str | None, error: BaseException) -> None:
        self._counters.add("retention_failures")
        reason = f"{type(error).__name__}: {error}"
        self._reporter.report("retention_failed", tenant_id=tenant_id, reason=reason)


class _CronJob(schedule.Job):
    """A job of ``schedule`` whose times come from a cron expression.

    ``schedule`` reckons in local time without a zone, which the change to summer time breaks: so
    the questions "when next?" and "now?" are answered here, in UTC.
    """

    def __init__(
        self, cron: str, clock: Callable[[], datetime], scheduler: schedule.Scheduler
    ) -> None:
        super().__init__(1, scheduler)
        self._cron = cron
        self._clock = clock
        self._due = clock()

    @property
    def should_run(self) -> bool:
        """The time has come."""
        return not self.seconds_left()

    def run(self) -> bool:
        """Run, and come back at the next time; sooner if another process is at it."""
        settled = bool(self.job_func and self.job_func())
        self.last_run = self._clock()
        self._schedule_next_run()
        if not settled:
            soon = self.last_run + timedelta(seconds=_LOOK_AGAIN)
            self._due = self.next_run = min(self._due, soon)
        return settled

    def _schedule_next_run(self) -> None:
        self._due = self.next_run = next(CronSim(self._cron, self._clock()))

    def seconds_left(self) -> float:
        """Return the seconds until the next time, also after the clock was set back."""
        now = self._clock()
        self._due = self.next_run = min(self._due, next(CronSim(self._cron, now)))
        return max(0.0, (self._due - now).total_seconds())

    def last_time(self) -> datetime:
        """Return the latest scheduled time that has come."""
        after = self._clock().replace(microsecond=0) + timedelta(seconds=1)
        return next(CronSim(self._cron, after, reverse=True))


class _Stamp(msgspec.Struct, frozen=True, kw_only=True):
    """What is in ``retention.json``.

    Attributes:
        v: the format.
        done_up_to: the scheduled time up to which everything is pruned.
        clock: what is known of the clock.
    """

    v: int = 1
    done_up_to: datetime | None = None
    clock: Belief | None = None


def _read(descriptor: int) -> _Stamp:
    with suppress(msgspec.MsgspecError, UnicodeDecodeError):
        return msgspec.json.decode(os.pread(descriptor, 4096, 0), type=_Stamp)
    return _Stamp()


def _peek(path: Path) -> _Stamp:
    """Read the stamp without the lock."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _read(descriptor)
    finally:
        os.close(descriptor)


def _leap(options: RetentionOptions) -> timedelta:
    """Return how far the clock may be off: no event may go before half of its days is over."""
    own = options.tenants.values()
    shortest = min([*own, options.days or 36_500])
    return min(PROBATION, timedelta(days=shortest / 2))


def _doubt(now: datetime, belief: Belief, since: datetime) -> str:
    days = abs(now - belief.believed) / timedelta(days=1)
    side = "after" if now > belief.believed else "before"
    return (
        f"the clock says {now:%Y-%m-%d %H:%M} UTC, {days:.1f} days {side} the last time that is "
        f"certain ({belief.believed:%Y-%m-%d %H:%M}), so nothing is pruned. Look at the clock; if "
        "it is right, call trail.prune(trust_clock=True), or wait: it is believed at "
        f"{since + PROBATION:%Y-%m-%d %H:%M}"
    )
