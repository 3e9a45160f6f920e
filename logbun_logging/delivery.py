"""One attempt to bring batches to their database, and what came of it.

This is where errors are told apart: an outage (wait, never hold it against the batch), rows that
are refused (split until only those are left), and everything else (try again, then split, then give
up). Every call of an adapter runs on a thread of its own with a time-out, because nothing can make
a driver's call return; a call that hangs costs that thread, not a worker.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any, Final

import msgspec

from logbun_logging.adapters.base import EncodedBatch
from logbun_logging.breaker import CircuitBreaker
from logbun_logging.errors import (
    AdapterUnavailableError,
    BusyError,
    ConfigurationError,
    RejectedEventsError,
)
from logbun_logging.event import decode_event
from logbun_logging.stats import Counters
from logbun_logging.tenancy import Databases, Target

__all__ = ["Delivery", "Outcome", "TimedCalls", "Verdict", "is_outage"]

#: Calls of one database that hang at the same time before no more are made.
_MAX_HANGING: Final = 16


class Verdict(Enum):
    """What came of an attempt."""

    STORED = "stored"
    OUTAGE = "outage"
    REFUSED = "refused"
    FAILED = "failed"


class Outcome(msgspec.Struct, frozen=True):
    """The verdict of an attempt, with the error's text if there was one."""

    verdict: Verdict
    reason: str = ""


def is_outage(error: BaseException) -> bool:
    """Tell whether *error* speaks of the connection rather than of the rows."""
    return isinstance(error, AdapterUnavailableError | ConfigurationError | OSError | TimeoutError)


class TimedCalls:
    """Runs calls with a time-out, on threads that are kept for the next call.

    A call that does not return in time keeps its thread, which ends when the call does.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle: queue.SimpleQueue[_Runner] = queue.SimpleQueue()
        self._hanging: Counter[Hashable] = Counter()
        self._lock = threading.Lock()

    def run(self, call: Callable[[], Any], timeout: float, database: Hashable = None) -> Any:
        """Return what *call* returns, or raise what it raises.

        Args:
            call: what to run.
            timeout: in seconds.
            database: whose calls hang together: one that hangs stops no call of another.

        Raises:
            AdapterUnavailableError: it did not return within *timeout* seconds, or too many calls
                hang already.
        """
        with self._lock:
            if self._hanging[database] >= _MAX_HANGING:
                raise AdapterUnavailableError(f"{_MAX_HANGING} calls to the database hang already")
        try:
            runner = self._idle.get_nowait()
        except queue.Empty:
            runner = _Runner(self._finish)
            if sys.is_finalizing():  # no new threads, so no time-out
                return call()
            try:
                threading.Thread(target=runner.loop, name=self._name, daemon=True).start()
            except RuntimeError:  # refused already at the end of the main thread, by Python 3.12
                return call()
        result = _Result(database)
        runner.calls.put((call, result))
        if not result.done.wait(timeout):
            with self._lock:
                if not result.done.is_set():
                    result.abandoned = True
                    self._hanging[database] += 1
                    raise AdapterUnavailableError(f"no answer within insert_timeout={timeout:g} s")
        self._idle.put(runner)
        if result.error is not None:
            raise result.error
        return result.value

    def _finish(self, result: _Result) -> bool:
        """Hand a result over; return False if nobody waits for it any more."""
        with self._lock:
            result.done.set()
            if result.abandoned:
                self._hanging[result.database] -= 1
                self._hanging += Counter()  # forgets those that hang no more
            return not result.abandoned

    def close(self) -> None:
        """Let the idle threads end."""
        with suppress(queue.Empty):
            while True:
                self._idle.get_nowait().calls.put(None)


class _Result:
    __slots__ = ("abandoned", "database", "done", "error", "value")

    def __init__(self, database: Hashable) -> None:
        self.database = database
        self.done = threading.Event()
        self.value: Any = None
        self.error: BaseException | None = None
        self.abandoned = False


class _Runner:
    __slots__ = ("_finish", "calls")

    def __init__(self, finish: Callable[[_Result], bool]) -> None:
        self._finish = finish
        self.calls: queue.SimpleQueue[tuple[Callable[[], Any], _Result] | None] = (
            queue.SimpleQueue()
        )

    def loop(self) -> None:
        while (item := self.calls.get()) is not None:
            call, result = item
            try:
                result.value = call()
            except BaseException as error:
                result.error = error
            if not self._finish(result):
                return
            del call, result, item  # a waiting thread keeps no batch alive


class Delivery:
    """Inserts batches through the adapters that the databases lend.

    Args:
        databases: where events go.
        counters: told of what was inserted and what failed.
        timeout: seconds for one insert.
        recovered: called when a database that was down takes events again.
    """

    def __init__(
        self,
        databases: Databases,
        counters: Counters,
        timeout: float,
        recovered: Callable[[], None],
    ) -> None:
        self._databases = databases
        self._counters = counters
        self._timeout = timeout
        self._recovered = recovered
        self._calls = TimedCalls("logbun-insert")

    def attempt(self, batches: Sequence[EncodedBatch]) -> Outcome:
        """Try once to insert all *batches* (of one database, each of one tenant) or none.

        Where the adapter takes one tenant at a time, only one batch may be given.
        """
        tenant_id = batches[0][0]
        breaker = self._databases.breaker(tenant_id)
        if not breaker.allow():
            return Outcome(Verdict.OUTAGE, "the database is down")
        try:
            stored = self._calls.run(
                lambda: self._insert(tenant_id, batches), self._timeout, breaker
            )
        except Exception as error:
            self._counters.add("insert_failures")
            if isinstance(error, msgspec.MsgspecError):  # no event of ours; splitting finds it
                return Outcome(Verdict.REFUSED, _text(error))
            if is_outage(error):
                if not isinstance(error, BusyError):
                    breaker.failed()
                return Outcome(Verdict.OUTAGE, _text(error))
            refused = isinstance(error, RejectedEventsError)
            self._reachable(breaker)
            return Outcome(Verdict.REFUSED if refused else Verdict.FAILED, _text(error))
        self._reachable(breaker)
        if stored is False:
            self._counters.add("insert_failures")
            return Outcome(Verdict.FAILED, "bulk_insert returned False")
        self._counters.add("inserted", sum(len(payloads) for _, payloads in batches))
        return Outcome(Verdict.STORED)

    def _insert(self, tenant_id: str | None, batches: Sequence[EncodedBatch]) -> Any:
        """Borrow the database and insert, both within the time-out.

        The lease is the call's and not the waiting worker's: a call that hangs goes on using the
        adapter after the worker has given it up.
        """
        with self._databases.lease(tenant_id) as target:
            return _call(target, batches)

    def _reachable(self, breaker: CircuitBreaker) -> None:
        if breaker.succeeded():
            self._recovered()

    def bisect(
        self, tenant_id: str | None, payloads: Sequence[bytes]
    ) -> list[tuple[bytes, Outcome]]:
        """Insert what can be inserted of a batch that was refused; return the rest, and why.

        Splitting costs about ``2 · log2(n)`` inserts for each bad row. If nothing at all succeeds
        on the way to the first single row, the fault is not with the rows, and the whole is
        returned.
        """
        rest: list[tuple[bytes, Outcome]] = []
        stack = [list(payloads)]
        stored = False
        failures = 0
        patience = 2 * len(payloads).bit_length() + 2
        while stack:
            part = stack.pop()
            outcome = self.attempt([(tenant_id, part)])
            if outcome.verdict is Verdict.STORED:
                stored = True
                continue
            failures += 1
            hopeless = outcome.verdict is Verdict.OUTAGE or (not stored and failures > patience)
            if len(part) == 1 or hopeless:
                rest.extend((payload, outcome) for payload in part)
                if hopeless:
                    rest.extend((payload, outcome) for p in reversed(stack) for payload in p)
                    break
                continue
            middle = len(part) // 2
            stack += [part[middle:], part[:middle]]
        return rest

    def close(self) -> None:
        """Let the threads end that no call uses."""
        self._calls.close()


def _call(target: Target, batches: Sequence[EncodedBatch]) -> Any:
    adapter: Any = target.adapter
    if target.encoded:
        return adapter.insert_encoded(batches)
    decoded = [(tenant_id, [*map(decode_event, payloads)]) for tenant_id, payloads in batches]
    if target.many:
        return adapter.bulk_insert_many(decoded)
    ((tenant_id, events),) = decoded
    return adapter.bulk_insert(tenant_id, events)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
