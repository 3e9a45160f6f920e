"""One attempt to bring batches to their database, and what came of it.

This is where errors are told apart: an outage (wait, never hold it against the batch), rows that
are refused (split until only those are left), and everything else (try again, then split, then give
up). Every call of an adapter runs on a thread of its own with a time-out, because nothing can make
a driver's call return; a call that hangs costs that thread, not a worker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from enum import Enum
from typing import Any

import msgspec

from logbun_logging._encoding.messages import masked
from logbun_logging._engine.timed_calls import MAX_HANGING, TimedCalls
from logbun_logging._process.counters import Counters
from logbun_logging._tenancy.breaker import LARGEST_BATCH, CircuitBreaker
from logbun_logging._tenancy.databases import Databases, Target
from logbun_logging.adapters.base import EncodedBatch
from logbun_logging.errors import (
    AdapterUnavailableError,
    BatchTooLargeError,
    BusyError,
    ConfigurationError,
    NoAnswerError,
    RejectedEventsError,
)
from logbun_logging.event import decode_event

__all__ = ["Delivery", "Outcome", "Verdict", "is_outage"]


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


class Delivery:
    """Inserts batches through the adapters that the databases lend.

    Args:
        databases: where events go.
        counters: told of what was inserted and what failed.
        timeout: seconds for one insert.
        recovered: called when a database that was down takes events again.
        most_hanging: with more calls that hang, only databases that answered last are called.
    """

    def __init__(
        self,
        databases: Databases,
        counters: Counters,
        timeout: float,
        recovered: Callable[[], None],
        most_hanging: int = MAX_HANGING,
    ) -> None:
        self._databases = databases
        self._counters = counters
        self._timeout = timeout
        self._recovered = recovered
        self._most_hanging = most_hanging
        self._calls = TimedCalls("logbun-insert")

    @property
    def hanging(self) -> int:
        """Inserts that were given up and have not returned."""
        return self._calls.hanging

    @property
    def shared(self) -> bool:
        """One insert takes the batches of several tenants."""
        return self._databases.shared

    @property
    def per_tenant(self) -> bool:
        """Each tenant has a database of its own."""
        return self._databases.per_tenant

    def is_down(self, tenant_id: str | None) -> bool:
        """Tell whether no call to the tenant's database would be let through now."""
        return self._databases.breaker(tenant_id).wait_time() > 0

    def batch_size(self, tenant_id: str | None) -> int:
        """Return how many rows the tenant's database takes in one insert, as far as is known."""
        return self._databases.breaker(tenant_id).batch_size

    def group_size(self, tenant_id: str | None) -> int:
        """Return how many rows are worth taking at once.

        That is what one insert takes. While the database is down none is made, and the more rows
        fail together, the fewer files they fill.
        """
        return LARGEST_BATCH if self.is_down(tenant_id) else self.batch_size(tenant_id)

    def stored_since(self, tenant_id: str | None, moment: float) -> bool:
        """Tell whether an insert into the tenant's database has worked after *moment*.

        A batch that has failed as in an outage since then is at fault itself.

        Args:
            tenant_id: whose database.
            moment: monotonic seconds.
        """
        return self._databases.breaker(tenant_id).stored_since(moment)

    def attempt(self, batches: Sequence[EncodedBatch], *, suspect: bool = False) -> Outcome:
        """Try once to insert all *batches* (of one database, each of one tenant) or none.

        Where the adapter takes one tenant at a time, only one batch may be given.

        Args:
            batches: what to insert.
            suspect: the rows may be at fault: if they fail, that says nothing of their number.
        """
        tenant_id = batches[0][0]
        rows = sum(len(payloads) for _, payloads in batches)
        breaker = self._databases.breaker(tenant_id)
        reason = _misdirected(batches)
        if reason:
            self._counters.add("insert_failures")
            return Outcome(Verdict.REFUSED, reason)
        if not breaker.proven and self.hanging >= self._most_hanging:
            return Outcome(Verdict.OUTAGE, f"{self._most_hanging} calls to databases hang already")
        if not breaker.allow():
            return Outcome(Verdict.OUTAGE, "the database is down")
        try:
            stored = self._calls.run(
                lambda: self._insert(tenant_id, batches), self._timeout, breaker, breaker.try_now
            )
        except Exception as error:
            self._counters.add("insert_failures")
            return self._failure(error, breaker, rows, suspect=suspect)
        self._reachable(breaker)
        if stored is not None and stored is not True:
            self._counters.add("insert_failures")
            return Outcome(Verdict.FAILED, _not_stored(stored))
        breaker.stored(rows)
        return Outcome(Verdict.STORED)

    def _failure(
        self, error: Exception, breaker: CircuitBreaker, rows: int, *, suspect: bool
    ) -> Outcome:
        """Tell an outage, refused rows and everything else apart, and note what it says."""
        if isinstance(error, msgspec.MsgspecError):  # no event of ours; splitting finds it
            return Outcome(Verdict.REFUSED, _text(error))
        if is_outage(error):
            if not isinstance(error, BusyError):
                breaker.failed(hung=isinstance(error, NoAnswerError))
                if not suspect:
                    breaker.too_large(rows, sure=False)
            return Outcome(Verdict.OUTAGE, _text(error))
        self._reachable(breaker)
        if isinstance(error, BatchTooLargeError):
            breaker.too_large(rows, sure=True)
        refused = isinstance(error, RejectedEventsError)
        return Outcome(Verdict.REFUSED if refused else Verdict.FAILED, _text(error))

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
        self, tenant_id: str | None, payloads: Sequence[bytes], *, suspect: bool = False
    ) -> list[tuple[bytes, Outcome]]:
        """Insert what can be inserted of a batch that was refused; return the rest, and why.

        Splitting costs about ``2 · log2(n)`` inserts for each bad row. Large parts come before
        small ones, so that a bad row's failures alternate with successes, and open no circuit. If
        nothing at all succeeds on the way to the first single row, the fault is not with the rows,
        and the whole is returned.

        Args:
            tenant_id: whose rows they are.
            payloads: the rows.
            suspect: they have failed as in an outage while others did not: split them all the same,
                until the circuit opens.
        """
        rest: list[tuple[bytes, Outcome]] = []
        parts = deque([list(payloads)])
        stored = False
        failures = 0
        patience = 2 * len(payloads).bit_length() + 2
        while parts:
            part = parts.popleft()
            size = self.batch_size(tenant_id)
            if len(part) > size:
                parts += [part[at : at + size] for at in range(0, len(part), size)]
                continue
            outcome = self.attempt([(tenant_id, part)], suspect=True)
            if outcome.verdict is Verdict.STORED:
                stored = True
                continue
            failures += 1
            hopeless = not stored and failures > patience
            if outcome.verdict is Verdict.OUTAGE:
                down = self._databases.breaker(tenant_id).is_open
                hopeless = hopeless or down or not suspect
            if len(part) == 1 or hopeless:
                rest.extend((payload, outcome) for payload in part)
                if hopeless:
                    rest.extend((payload, outcome) for part in parts for payload in part)
                    break
                continue
            middle = len(part) // 2
            parts += [part[:middle], part[middle:]]
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


class _Owner(msgspec.Struct):
    tenant_id: str | None = None


_owner_of = msgspec.json.Decoder(_Owner).decode


def _misdirected(batches: Sequence[EncodedBatch]) -> str:
    """Say which event is not of its batch's tenant, whatever has made it so; "" if none is.

    It must not get into that tenant's database, nor, in a shared one, among the other's rows.
    """
    try:
        for tenant_id, payloads in batches:
            for payload in payloads:
                owner = _owner_of(payload).tenant_id
                if owner != tenant_id:
                    return f"an event of tenant {owner!r} in a batch of tenant {tenant_id!r}"
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return f"not an event: {error}"
    return ""


def _not_stored(answer: Any) -> str:
    """Say why an insert that raised nothing has stored nothing."""
    if isinstance(answer, Coroutine):
        answer.close()  # or Python warns that nobody has awaited it
    shown = repr(answer) if isinstance(answer, int) else f"a {type(answer).__name__}"
    return f"the insert returned {shown}: only None and True say that the rows are stored"


def _text(error: BaseException) -> str:
    return masked(f"{type(error).__name__}: {error}")  # it gets into dead letters
