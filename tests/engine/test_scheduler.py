"""Bounds, triggers and fairness of the buffers, without threads and with a clock of our own."""

from __future__ import annotations

import threading

import pytest

from logbun_logging._engine.scheduler import Buffers
from logbun_logging._tenancy.places import Places
from logbun_logging.event import Entry
from logbun_logging.options import BatchingOptions, LimitOptions


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def make(clock, *, many=True, limits=None, durable=False, batch_size=5000, places=None, **batching):
    return Buffers(
        BatchingOptions(**batching),
        LimitOptions(**(limits or {})),
        many=many,
        durable=durable,
        places=places,
        batch_size=lambda: batch_size,
        clock=clock,
    )


def fill(buffers, tenant, count):
    entries = [Entry(tenant, b"x" * 10) for _ in range(count)]
    for entry in entries:
        assert buffers.admit(entry) == "admitted"
    buffers.put(entries)
    return entries


def test_a_batch_is_due_when_it_is_full_or_old(clock):
    buffers = make(clock, many=False, max_size=3, flush_interval=5.0)
    two = fill(buffers, "t", 2)
    assert buffers.take(0) == []
    clock.now += 5
    ((queue, found),) = buffers.take(0)
    assert found == two
    buffers.complete(queue, found, {"inserted": len(found)})
    three = fill(buffers, "t", 3)
    ((_, found),) = buffers.take(0)
    assert found == three


def test_due_batches_wait_for_company_but_not_for_long(clock):
    buffers = make(clock, max_size=1)
    fill(buffers, "a", 1)
    clock.now += 0.01
    fill(buffers, "b", 1)
    clock.now += 0.02
    assert [queue.tenant_id for queue, _ in buffers.take(0)] == ["a", "b"]


def test_small_batches_are_due_when_memory_is_half_full(clock):
    buffers = make(clock, max_size=100, limits={"max_total_queued": 10})
    for number in range(5):
        fill(buffers, f"tenant_{number}", 1)
    assert buffers.take(0) == []
    fill(buffers, "tenant_5", 1)
    clock.now += 0.02
    assert len(buffers.take(0)) == 6


def test_recovered_events_leave_room_for_live_ones(clock):
    buffers = make(clock, limits={"max_total_queued": 10})
    fill(buffers, "t", 8)
    assert buffers.spacious()
    fill(buffers, "t", 1)
    assert not buffers.spacious()


def test_a_tenant_under_way_is_not_taken_again(clock):
    buffers = make(clock, many=False, max_size=1)
    fill(buffers, "t", 2)
    ((queue, found),) = buffers.take(0)
    assert len(found) == 1
    assert buffers.take(0) == []
    buffers.complete(queue, found, {"inserted": len(found)})
    assert len(buffers.take(0)) == 1


def test_no_tenant_starves_another(clock):
    buffers = make(clock, max_size=10, batch_size=100)
    fill(buffers, "noisy", 1000)
    for number in range(4):
        fill(buffers, f"quiet{number}", 10)
    clock.now += 1
    sizes = {queue.tenant_id: len(found) for queue, found in buffers.take(0)}
    assert sizes == {"noisy": 20, **{f"quiet{number}": 10 for number in range(4)}}


def test_a_failed_batch_is_tried_again_later_and_in_order(clock):
    buffers = make(clock, many=False, max_size=2)
    fill(buffers, "t", 4)
    ((queue, first),) = buffers.take(0)
    buffers.retry_later(queue, first, 4.0)
    assert buffers.take(0) == []
    assert queue.stalled(clock.now)
    clock.now += 4
    ((_, again),) = buffers.take(0)
    assert again == first
    buffers.complete(queue, again, {})
    assert not queue.stalled(clock.now)
    assert buffers.events == 2


def test_a_full_memory_spills_the_tenants_with_the_most(clock):
    buffers = make(clock, limits={"max_total_queued": 100})
    fill(buffers, "large", 90)
    fill(buffers, "small", 5)
    assert buffers.crowded()
    spilled = buffers.overfull()
    assert [(queue.tenant_id, len(found)) for queue, found in spilled] == [("large", 90)]
    queue, found = spilled[0]
    buffers.put_back(queue, found)
    assert buffers.depths() == {"large": 90, "small": 5}
    assert list(queue.entries) == found


def test_total_bounds_hold_for_events_and_bytes(clock):
    buffers = make(clock, limits={"max_total_queued": 2})
    fill(buffers, "t", 2)
    assert buffers.admit(Entry("u", b"x")) == "full"
    assert buffers.admit_later(Entry("u", b"x"), 0.01) == "full"
    buffers = make(clock, limits={"max_queued_bytes": 100_000}, on_queue_full="drop")
    assert buffers.admit(Entry("t", b"x" * 60_000)) == "admitted"
    assert buffers.admit(Entry("u", b"x" * 60_000)) == "drop"


def test_admission_is_atomic(clock):
    buffers = make(clock, limits={"max_total_queued": 1000}, max_queue_size=100_000)
    verdicts = []

    def work():
        verdicts.extend(buffers.admit(Entry("t", b"x")) for _ in range(1000))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts.count("admitted") == buffers.events == 1000


def test_tenants_without_anything_are_forgotten(clock):
    buffers = make(clock, many=False, max_size=1)
    for number in range(5000):
        fill(buffers, f"t{number}", 1)
        ((queue, found),) = buffers.take(0)
        buffers.complete(queue, found, {"inserted": len(found)})
    assert len(buffers._queues) <= 4097


def test_a_refused_event_leaves_nothing_behind(clock):
    buffers = make(clock, limits={"max_total_queued": 1})
    fill(buffers, "a", 1)
    assert buffers.admit(Entry("b", b"x")) == "full"
    assert list(buffers._queues) == ["a"]


def test_a_batch_that_fails_after_everything_was_given_up_is_off_the_books(clock):
    buffers = make(clock, max_size=2)
    fill(buffers, "t", 2)
    clock.now += 0.02
    ((queue, found),) = buffers.take(0)
    ((_, given_up),) = buffers.drain()
    buffers.complete(queue, given_up, {}, free=False)
    buffers.retry_later(queue, found, 1.0)
    assert (buffers.events, buffers.bytes, buffers.depths()) == (0, 0, {})
    assert list(buffers.drain()) == []


def test_who_would_wait_is_known_before(clock):
    buffers = make(clock, on_queue_full="block", max_size=2, max_queue_size=2)
    entry = Entry("t", b"x")
    assert not buffers.would_wait(entry)
    fill(buffers, "t", 2)
    assert buffers.would_wait(entry)
    assert not make(clock, max_queue_size=2, max_size=2).would_wait(entry)


def test_the_end_takes_everything(clock):
    buffers = make(clock, many=False, max_size=2)
    entries = fill(buffers, "t", 5)
    ((queue, first),) = buffers.take(0)
    assert [found for _, found in buffers.drain()] == [entries]
    buffers.retry_later(queue, first, 1.0)
    buffers.close()
    assert buffers.take(None) is None


# ── the bounds of memory ──


def test_a_noisy_tenant_of_a_durable_trail_gets_half_of_memory_at_most(clock):
    buffers = make(clock, durable=True, max_queue_size=10, limits={"max_total_queued": 100})
    fill(buffers, "loud", 50)
    assert buffers.admit(Entry("loud", b"x")) == "full", "it is left to the WAL"
    fill(buffers, "quiet", 10)
    fill(buffers, "other", 10)


def test_a_noisy_tenant_of_a_volatile_trail_leaves_room_for_the_others(clock):
    buffers = make(clock, max_queue_size=10, limits={"max_total_queued": 100})
    fill(buffers, "loud", 95)
    assert buffers.admit(Entry("loud", b"x")) == "full", "it waits"
    fill(buffers, "quiet", 4)


def test_who_has_waited_for_room_is_let_in_where_there_is_any(clock):
    buffers = make(clock, max_queue_size=10, limits={"max_total_queued": 100})
    fill(buffers, "loud", 95)
    for _ in range(5):
        assert buffers.admit_later(Entry("loud", b"x"), 0.0) == "admitted"
    assert buffers.admit_later(Entry("loud", b"x"), 0.0) == "full"


# ── who gets a place ──


def test_tenants_whose_databases_hang_leave_places_to_the_others(clock):
    well = {"well"}
    places = Places(proven=well.__contains__, connections=10)
    buffers = make(clock, many=False, places=places, max_size=1)
    for number in range(20):
        fill(buffers, f"sick{number}", 1)
    taken = []
    while group := buffers.take(0):
        taken += group
        clock.now += 1
    assert len(taken) == 5
    fill(buffers, "well", 1)
    ((queue, _),) = buffers.take(0)
    assert queue.tenant_id == "well"
    queue, found = taken[0]
    buffers.retry_later(queue, found, 10.0)
    assert len(buffers.take(0)) == 1, "whose call has ended makes room"


def test_what_was_spilled_while_it_was_due_is_not_taken(clock):
    buffers = make(clock, limits={"max_total_queued": 10})
    fill(buffers, "t", 10)
    buffers.make_all_due()
    clock.now += 1
    ((queue, entries),) = buffers.overfull()
    assert buffers.take(0) == []
    buffers.put_back(queue, entries)
    buffers.make_all_due()
    clock.now += 1
    ((_, found),) = buffers.take(0)
    assert found == entries


def test_a_shared_database_gets_as_much_as_it_takes_but_no_less_than_a_batch(clock):
    buffers = make(clock, max_size=10, batch_size=40)
    fill(buffers, "t", 100)
    clock.now += 1
    ((_, found),) = buffers.take(0)
    assert len(found) == 40
    buffers = make(clock, max_size=10, batch_size=1)
    fill(buffers, "t", 100)
    clock.now += 1
    ((_, found),) = buffers.take(0)
    assert len(found) == 10


# ── flush and the books ──


def flushed(buffers):
    return buffers.flush(buffers._clock())


def test_a_flush_waits_for_a_batch_that_is_tried_again_though_newer_events_were_spilled(clock):
    buffers = make(clock, many=False, max_size=2, max_queue_size=4)
    fill(buffers, "t", 2)
    ((queue, first),) = buffers.take(0)
    buffers.retry_later(queue, first, 4.0)
    fill(buffers, "t", 4)
    ((_, spilled),) = buffers.overfull()
    buffers.complete(queue, spilled, {"spilled": 4}, free=False)
    assert not flushed(buffers)
    clock.now += 4
    ((_, again),) = buffers.take(0)
    assert not flushed(buffers)
    buffers.complete(queue, again, {"inserted": 2})
    assert flushed(buffers)


def test_a_flush_waits_for_events_that_have_not_come_from_the_queue(clock):
    buffers = make(clock)
    entry = Entry("t", b"x")
    assert buffers.admit(entry) == "admitted"
    assert not flushed(buffers)
    buffers.discard([entry], "filtered")
    assert flushed(buffers)


def test_a_part_of_a_batch_that_is_settled_is_not_tried_again(clock):
    buffers = make(clock, many=False, max_size=4)
    entries = fill(buffers, "t", 4)
    ((queue, found),) = buffers.take(0)
    assert buffers.complete_part(queue, found, found[3:], {"inserted": 3})
    buffers.retry_later(queue, found, 1.0)
    clock.now += 1
    ((_, again),) = buffers.take(0)
    assert again == entries[3:]
    books = buffers.snapshot()
    assert (books["accepted"], books["inserted"], books["queued"]) == (4, 3, 1)


def test_a_batch_is_given_back_by_its_owner_only(clock):
    buffers = make(clock, many=False, max_size=2)
    fill(buffers, "t", 2)
    ((queue, first),) = buffers.take(0)
    buffers.retry_later(queue, first, 0.0)
    ((_, second),) = buffers.take(0)
    buffers.retry_later(queue, first, 0.0)
    buffers.complete(queue, first, {"inserted": 2})
    assert not buffers.complete_part(queue, first, [], {"inserted": 2})
    assert queue.in_flight is second
    assert buffers.snapshot()["inserted"] == 0


def test_recovered_events_are_not_accepted_once_more(clock):
    buffers = make(clock)
    entry = Entry("t", b"x")
    assert buffers.readmit(entry) == "admitted"
    books = buffers.snapshot()
    assert (books["accepted"], books["recovered"], books["queued"]) == (0, 1, 1)


def test_empty_memory_lets_one_event_of_any_size_in(clock):
    buffers = make(clock, limits={"max_queued_bytes": 100_000})
    large = Entry("t", b"x" * 300_000)
    assert buffers.admit(large) == "admitted"
    assert buffers.admit(Entry("t", b"x")) == "full"
    buffers.put([large])
    clock.now += 5
    ((queue, entries),) = buffers.take(0)
    buffers.complete(queue, entries, {"inserted": 1})
    assert buffers.admit(Entry("t", b"x")) == "admitted"
    assert buffers.admit(Entry("t", b"x" * 300_000)) == "full"


def fail_for_good(buffers, tenants, reason="down"):
    """Take one batch of each, which no insert takes."""
    queues = []
    for tenant in tenants:
        fill(buffers, tenant, 1)
        ((queue, found),) = buffers.take(0)
        buffers.dead_letter_later(queue, found, reason)
        queues.append(queue)
    return queues


def test_batches_that_go_to_the_dlq_wait_for_each_other_but_not_for_long(clock):
    buffers = make(clock, many=False, max_size=1, flush_interval=5.0)
    fail_for_good(buffers, ["a", "b"])
    clock.now += 4
    fail_for_good(buffers, ["c"])
    assert buffers.take(0) == []
    clock.now += 1
    group = buffers.take(0)
    assert [queue.tenant_id for queue, _ in group] == ["a", "b", "c"]
    assert {queue.unsent for queue, _ in group} == {"down"}
    for queue, found in group:
        buffers.complete(queue, found, {"dead_lettered": 1})
    assert (buffers.events, buffers.snapshot()["dead_lettered"]) == (0, 3)
    assert buffers.take(0) == []


def test_batches_that_fill_a_file_wait_no_longer(clock):
    buffers = make(clock, many=False, max_size=1, flush_interval=3600.0)
    fail_for_good(buffers, ["a"])
    entry = Entry("b", b"x" * 1024 * 1024)
    assert buffers.admit(entry) == "admitted"
    buffers.put([entry])
    ((queue, found),) = buffers.take(0)
    buffers.dead_letter_later(queue, found, "down")
    assert [queue.tenant_id for queue, _ in buffers.take(0)] == ["a", "b"]


def test_a_tenant_s_next_batch_waits_for_the_one_that_goes_to_the_dlq(clock):
    buffers = make(clock, many=False, max_size=1, flush_interval=5.0)
    (queue,) = fail_for_good(buffers, ["t"])
    second = fill(buffers, "t", 1)
    assert buffers.take(0) == []
    clock.now += 5
    ((_, first),) = buffers.take(0)
    buffers.complete(queue, first, {"dead_lettered": 1})
    ((same, found),) = buffers.take(0)
    assert (same, found, same.unsent) == (queue, second, "")


def test_what_cannot_be_written_to_the_dlq_is_tried_again_as_a_batch(clock):
    buffers = make(clock, many=False, max_size=1, flush_interval=5.0)
    fail_for_good(buffers, ["t"])
    clock.now += 5
    ((queue, found),) = buffers.take(0)
    buffers.retry_later(queue, found, 1.0)
    clock.now += 1
    ((queue, again),) = buffers.take(0)
    assert (again, queue.unsent) == (found, "")


def test_batches_on_their_way_to_the_dlq_are_given_up_with_the_rest(clock):
    buffers = make(clock, many=False, max_size=1, flush_interval=5.0)
    fail_for_good(buffers, ["a", "b"])
    assert [queue.tenant_id for queue, _ in buffers.drain()] == ["a", "b"]
    clock.now += 5
    assert buffers.take(0) == []
