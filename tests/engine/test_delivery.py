"""One attempt to insert, and what is made of its outcome."""

from __future__ import annotations

import asyncio

import pytest

from logbun_logging import AdapterUnavailableError, BatchTooLargeError
from logbun_logging._engine.delivery import Delivery, Verdict
from logbun_logging._process.counters import Counters
from logbun_logging._tenancy.databases import SingleDatabase
from logbun_logging.event import AuditEvent, encode_event
from tests.fakes import SharedMemoryAdapter, wait_until


def payloads(count, start=0):
    return [
        encode_event(
            AuditEvent(
                id=f"01900000-0000-7000-8000-{number:012x}",
                created_at="2026-01-01T00:00:00.000000Z",
                action=f"a.{number}",
                tenant_id="t",
            )
        )
        for number in range(start, start + count)
    ]


@pytest.fixture
def make_delivery():
    made = []

    def make(adapter, timeout=5.0):
        delivery = Delivery(SingleDatabase(adapter), Counters(), timeout, lambda: None)
        made.append(delivery)
        return delivery

    yield make
    for delivery in made:
        delivery.close()


class Limited(SharedMemoryAdapter):
    """Takes so many rows at a time."""

    limit = 10

    def bulk_insert_many(self, batches):
        if sum(len(events) for _, events in batches) > self.limit:
            self.batches.append((None, sum(len(events) for _, events in batches)))
            raise BatchTooLargeError("413")
        return super().bulk_insert_many(batches)


class Breaks(SharedMemoryAdapter):
    """Loses its connection over rows of some actions."""

    breaks_on = frozenset({"a.0"})

    def bulk_insert_many(self, batches):
        self.batches.append((None, sum(len(events) for _, events in batches)))
        if any(event.action in self.breaks_on for _, events in batches for event in events):
            raise AdapterUnavailableError("connection reset by peer")
        return super().bulk_insert_many(batches)


@pytest.mark.parametrize("error", [SystemExit, asyncio.CancelledError, KeyboardInterrupt])
def test_what_is_no_exception_is_the_end_of_the_call_alone(make_delivery, error):
    class Ends(SharedMemoryAdapter):
        def bulk_insert_many(self, batches):
            raise error("enough")

    outcome = make_delivery(Ends()).attempt([("t", payloads(1))])
    assert outcome.verdict is Verdict.FAILED
    assert error.__name__ in outcome.reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(False, "returned False"), (0, "returned 0"), (1, "returned 1"), ("ok", "returned a str")],
)
def test_an_insert_that_does_not_say_so_has_stored_nothing(make_delivery, answer, reason):
    class Says(SharedMemoryAdapter):
        def bulk_insert_many(self, batches):
            return answer

    delivery = make_delivery(Says())
    outcome = delivery.attempt([("t", payloads(1))])
    assert outcome.verdict is Verdict.FAILED
    assert reason in outcome.reason


def test_an_insert_that_nobody_awaits_has_stored_nothing(make_delivery):
    class Asynchronous(SharedMemoryAdapter):
        async def bulk_insert_many(self, batches):
            return True

    outcome = make_delivery(Asynchronous()).attempt([("t", payloads(1))])
    assert outcome.verdict is Verdict.FAILED
    assert "a coroutine" in outcome.reason


def test_a_database_that_hung_is_asked_again_as_soon_as_it_has_answered(make_delivery):
    adapter = SharedMemoryAdapter()
    delivery = make_delivery(adapter, timeout=0.05)
    adapter.gate.clear()
    assert delivery.attempt([("t", payloads(1))]).verdict is Verdict.OUTAGE
    assert delivery.attempt([("t", payloads(1))]).reason == "the database is down"
    adapter.gate.set()
    assert wait_until(lambda: delivery.attempt([("t", payloads(1))]).verdict is Verdict.STORED)


def test_batches_that_are_too_large_get_smaller_for_all_who_come_after(make_delivery):
    adapter = Limited()
    delivery = make_delivery(adapter)
    assert delivery.attempt([("t", payloads(100))]).verdict is Verdict.REFUSED
    assert delivery.batch_size("t") == 50
    assert delivery.bisect("t", payloads(100)) == []
    assert len(adapter.events) == 100
    assert delivery.batch_size("t") <= adapter.limit


def test_one_row_that_is_too_large_is_left(make_delivery):
    adapter = Limited()
    adapter.limit = 0
    ((_, outcome),) = make_delivery(adapter).bisect("t", payloads(1))
    assert outcome.verdict is Verdict.REFUSED


def test_a_row_that_looks_like_an_outage_is_found_by_splitting(make_delivery):
    adapter = Breaks()
    delivery = make_delivery(adapter)
    rows = payloads(100)
    ((payload, outcome),) = delivery.bisect("t", rows, suspect=True)
    assert payload == rows[0]
    assert outcome.verdict is Verdict.OUTAGE
    assert len(adapter.events) == 99
    assert delivery.batch_size("t") == 5000, "the rows are at fault, and not their number"


def test_splitting_ends_when_the_database_is_down(make_delivery):
    adapter = Breaks()
    adapter.breaks_on = {f"a.{number}" for number in range(100)}
    left = make_delivery(adapter).bisect("t", payloads(100), suspect=True)
    assert len(left) == 100
    assert len(adapter.batches) == 3


def test_an_outage_is_not_split(make_delivery):
    adapter = Breaks()
    assert len(make_delivery(adapter).bisect("t", payloads(100))) == 100
    assert len(adapter.batches) == 1


def test_whether_an_insert_has_worked_since_is_known(make_delivery):
    adapter = Breaks()
    delivery = make_delivery(adapter)
    assert not delivery.stored_since("t", 0.0)
    delivery.attempt([("t", payloads(1))])
    assert not delivery.stored_since("t", 0.0)
    delivery.attempt([("t", payloads(1, start=1))])
    assert delivery.stored_since("t", 0.0)


def test_an_event_of_another_tenant_is_refused_and_the_others_are_stored(make_delivery):
    adapter = SharedMemoryAdapter()
    rows = payloads(5)
    named = b'"tenant_id":"t"'
    forged = rows[2] = rows[2].replace(named, named + b',"tenant_id":"victim"')
    ((row, outcome),) = make_delivery(adapter).bisect("t", rows)
    assert (row, outcome.verdict) == (forged, Verdict.REFUSED)
    assert "'victim'" in outcome.reason
    assert {event.tenant_id for event in adapter.events.values()} == {"t"}
    assert len(adapter.events) == 4
