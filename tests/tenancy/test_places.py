"""Tenants that are well always find a place, whatever the others do."""

from __future__ import annotations

from logbun_logging._tenancy.places import Places, most_doubtful


def fill(places, count, now, *, doubtful):
    """Begin calls as they are let in, one each 0.1 s; return how many, and the time then."""
    taken = 0
    for number in range(count):
        now += 0.1
        if places.free(now, doubtful=doubtful):
            places.take((doubtful, number), now, doubtful=doubtful)
            taken += 1
    return taken, now


def test_calls_that_take_long_make_way_for_others():
    places = Places()
    for number in range(8):
        places.take(number, 0.0, doubtful=False)
    assert not places.free(0.4, doubtful=False)
    assert places.free(0.5, doubtful=False)
    places.release(0)
    assert places.free(0.0, doubtful=False)


def test_doubtful_tenants_leave_places_to_the_others():
    places = Places()
    taken, now = fill(places, 200, 0.0, doubtful=True)
    assert taken == 48
    assert not places.free(now, doubtful=True)
    assert places.free(now, doubtful=False)


def test_calls_that_hang_count_as_doubtful_and_hold_up_nobody_else():
    places = Places(hanging=lambda: 48)
    assert not places.free(0.0, doubtful=True)
    assert places.free(0.0, doubtful=False)


def test_there_is_a_bound_for_all():
    taken, _ = fill(Places(), 200, 0.0, doubtful=False)
    assert taken == 64


def test_few_connections_are_shared_out_as_well():
    assert [most_doubtful(places) for places in (1, 2, 4, 10, 50)] == [2, 2, 2, 5, 34]
    places = Places(connections=10)
    assert fill(places, 50, 0.0, doubtful=True)[0] == 5


def test_a_tenant_is_doubtful_until_its_database_has_answered():
    places = Places(proven={"well"}.__contains__)
    assert not places.doubtful("well")
    assert places.doubtful("new")
