"""Retention: pruning what is older than allowed, in every database, at a cron expression's times.

A daemon thread runs a ``schedule`` job whose next time comes from ``cronsim``, in UTC. Of several
processes of a namespace one does each run: it holds the flock of ``retention.json`` meanwhile, and
leaves in it up to when the schedule is done. So a second process does not do the same again, and a
time at which no process was running is made up for at the next start. The clock is passed in.

The pipeline starts and stops it; :meth:`Retention.prune` is also ``trail.prune()``.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec
import schedule
from cronsim import CronSim

from logbun_logging.adapters.base import PruneReport
from logbun_logging.errors import PruneError
from logbun_logging.files import PRIVATE_FILE, make_folder, try_lock
from logbun_logging.options import RetentionOptions
from logbun_logging.reporting import Reporter
from logbun_logging.stats import Counters
from logbun_logging.tenancy import Databases, NoDatabaseError
from logbun_logging.threads import Threads
from logbun_logging.worker import WorkerThread

__all__ = ["Retention"]

#: How long the thread sleeps at most, in seconds: the wall clock may be set meanwhile.
_LONGEST_SLEEP: Final = 60.0

#: When to look again whether another process has done what it was doing, in seconds.
_LOOK_AGAIN: Final = 60.0


def utc_clock() -> datetime:
    """Return the time of the wall clock."""
    return datetime.now(UTC)


class Retention:
    """Prunes the databases of one namespace.

    Args:
        folder: the namespace's folder; ``retention.json`` is in it.
        options: what to keep for how long, and when to prune.
        databases: what to prune.
        counters: told of rows and failures.
        reporter: told of failures.
        clock: returns the time, in UTC.
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
    ) -> None:
        self._path = folder / "retention.json"
        self._options = options
        self._databases = databases
        self._counters = counters
        self._reporter = reporter
        self._clock = clock
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
            self.run_pending()

    def catch_up(self) -> None:
        """Make up for a scheduled time at which no process of the namespace was running.

        With the first start of all nothing is missed; its time is noted for the next one.
        """
        try:
            stamp = self._with_lock(self._begin)
        except OSError as error:
            self._failed(None, error)
            return
        if stamp is not None and stamp < self._job.last_time():
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

    def _run_locked(self, stamp: datetime | None, due: datetime) -> bool:
        if stamp is not None and due <= stamp <= self._clock():  # one of the future is none
            return True
        report, _ = self._prune_all(dry_run=False)
        if self._stopping.is_set():
            return True  # without a stamp: the next start makes up for it
        self._write_stamp(due)
        self._reporter.report("pruned", rows=sum(report.values()), databases=len(report))
        return True

    # ── one process of several ──

    def _with_lock(self, work: Callable[[datetime | None], Any]) -> Any:
        """Return what *work* makes of the stamp; None if another process holds the lock."""
        make_folder(self._path.parent)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, PRIVATE_FILE)
        try:
            if not try_lock(descriptor):
                return None
            self._descriptor = descriptor
            try:
                return work(_read_stamp(descriptor))
            finally:
                self._descriptor = -1
                # By hand: a child forked meanwhile may have the descriptor and so the lock, too.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            os.close(descriptor)

    def _begin(self, stamp: datetime | None) -> datetime:
        now = self._clock()
        if stamp is None or stamp > now:
            stamp = now
            self._write_stamp(stamp)
        return stamp

    def _write_stamp(self, moment: datetime) -> None:
        """Note the time up to which everything is done; torn, it counts as never written."""
        data = msgspec.json.encode({"v": 1, "done_up_to": moment}) + b"\n"
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, data, 0)
        os.fdatasync(self._descriptor)

    # ── pruning ──

    def prune(self, *, dry_run: bool = False) -> PruneReport:
        """Prune every database now and return the rows removed, by tenant.

        Args:
            dry_run: only count what would go.

        Raises:
            PruneError: some databases could not be pruned; all others were.
        """
        report, failures = self._prune_all(dry_run=dry_run)
        if failures:
            raise PruneError(report, failures)
        return report

    def _prune_all(self, *, dry_run: bool) -> tuple[PruneReport, dict[str | None, Exception]]:
        report: PruneReport = {}
        failures: dict[str | None, Exception] = {}
        if not self.configured:
            return report, failures
        now = self._clock()
        try:
            for tenant_id, lease in self._databases.every():
                if self._stopping.is_set():
                    break
                days, tenants = self._limits(tenant_id)
                if days is None and not tenants:
                    continue
                try:
                    with lease as target:
                        found = target.adapter.prune(
                            days, tenants=tenants, dry_run=dry_run, now=now
                        )
                except NoDatabaseError:
                    report[tenant_id] = 0
                    continue
                except Exception as error:  # one database's trouble is none of the others
                    if self._stopping.is_set():
                        break  # the adapters are being closed: not a failure
                    failures[tenant_id] = error
                    self._failed(tenant_id, error)
                    continue
                report.update(found)
                if not dry_run:
                    self._counters.add("pruned", sum(found.values()))
        except OSError as error:  # the list of tenants cannot be read
            failures[None] = error
            self._failed(None, error)
        return report, failures

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
        return self._clock() >= self._due

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
        """Return the seconds until the next time."""
        return max(0.0, (self._due - self._clock()).total_seconds())

    def last_time(self) -> datetime:
        """Return the latest scheduled time that has come."""
        after = self._clock().replace(microsecond=0) + timedelta(seconds=1)
        return next(CronSim(self._cron, after, reverse=True))


class _Stamp(msgspec.Struct):
    v: int
    done_up_to: datetime


def _read_stamp(descriptor: int) -> datetime | None:
    with suppress(msgspec.MsgspecError, UnicodeDecodeError):
        return msgspec.json.decode(os.pread(descriptor, 4096, 0), type=_Stamp).done_up_to
    return None
