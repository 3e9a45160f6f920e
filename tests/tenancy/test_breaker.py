"""A database's health, with a clock of our own."""

from __future__ import annotations

import pytest

from logbun_logging._tenancy.breaker import BatchSize, CircuitBreaker


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return CircuitBreaker(clock=clock, rng=lambda: 0.5)


def test_a_call_that_hangs_opens_the_circuit_at_once(breaker):
    assert breaker.failed(hung=True)
    assert not breaker.allow()


def test_calls_that_hang_are_made_less_and_less_often(breaker, clock):
    breaker.failed(hung=True)
    pauses = []
    for _ in range(8):
        pauses.append(breaker.wait_time())
        clock.now += breaker.wait_time()
        assert breaker.allow()
        breaker.failed(hung=True)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_calls_that_were_under_way_when_the_circuit_opened_make_no_pause_longer(breaker):
    for _ in range(8):
        breaker.failed(hung=True)
    assert breaker.wait_time() == 1.0


def test_a_database_is_asked_at_once_when_a_call_that_hung_has_worked(breaker, clock):
    breaker.failed(hung=True)
    clock.now += 0.1
    breaker.try_now()
    assert breaker.allow()
    assert not breaker.allow(), "by one caller"


def test_a_database_is_proven_by_its_last_call(breaker):
    assert not breaker.proven
    breaker.succeeded()
    assert breaker.proven
    breaker.failed()
    assert not breaker.proven


def test_a_batch_size_halves_until_it_works_and_stays_below_what_failed(clock):
    size, limit, sent = BatchSize(clock), 600, []
    for _ in range(20):
        sent.append(size.rows)
        if size.rows > limit:
            size.failed(size.rows)
        else:
            size.stored(size.rows)
    assert sent[:7] == [5000, 2500, 1250, 625, 312, 624, 312]
    assert set(sent[7:]) == {312}


def test_a_batch_size_grows_back_at_once_after_an_outage(clock):
    size = BatchSize(clock)
    for _ in range(20):
        size.failed(size.rows)
    assert size.rows == 1
    for _ in range(13):
        size.stored(size.rows)
    assert size.rows == 5000


def test_a_size_that_has_failed_is_tried_again_after_a_pause_that_doubles(clock):
    size = BatchSize(clock)
    size.stored(2500)
    for hold in (60, 120, 240):
        size.failed(5000)
        size.stored(2500)
        assert size.rows == 2500
        clock.now += hold - 1
        size.stored(2500)
        assert size.rows == 2500
        clock.now += 1
        size.stored(2500)
        assert size.rows == 5000


def test_small_batches_that_work_say_nothing_of_large_ones(clock):
    size = BatchSize(clock)
    size.failed(100)
    size.stored(10)
    assert size.rows == 50
