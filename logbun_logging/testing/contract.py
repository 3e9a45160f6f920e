"""What every adapter must do, as a pytest class.

Subclass :class:`AdapterContract` in a test module, override the :meth:`~AdapterContract
.make_adapter` fixture, and pytest runs every test on your adapter::

    class TestMyAdapter(AdapterContract):
        @pytest.fixture
        def make_adapter(self, tmp_path):
            return lambda: MyAdapter(tmp_path / "audit.db")

Databases behind a network have more to stand: see :class:`~logbun_logging.testing.ServerContract`.
"""

from __future__ import annotations

import logging
import os
import random
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import msgspec
import pytest

from logbun_logging.adapters.base import Adapter, EncodedAdapter, ForkAwareAdapter
from logbun_logging.errors import RejectedEventsError
from logbun_logging.event import AuditEvent, encode_event
from logbun_logging.query import ALL_TENANTS, Filters, Pagination, TenantScope, make_filters
from logbun_logging.testing import samples
from logbun_logging.testing.memory import MemoryAdapter
from logbun_logging.trail import AuditTrail

__all__ = ["AdapterContract", "MakeAdapter", "OpenAdapter"]

#: Returns an adapter that has not been opened yet.
MakeAdapter: TypeAlias = Callable[[], Adapter]

#: Returns an adapter after ``init``; it is closed at the end of the test.
OpenAdapter: TypeAlias = Callable[[], Adapter]

_TENANTS: tuple[TenantScope, ...] = ("t1", "T1", "t1 ", "org/acme", None, ALL_TENANTS)


class AdapterContract:
    """The tests that every adapter must pass.

    Attributes:
        shares_database: several adapters may have the database open at once, as several processes
            of an application do. False for an embedded engine that only one may open.
        prunes_rows: ``prune`` removes exactly the rows that have expired. False where it drops
            whole months and leaves the rest to the database's own retention.
    """

    shares_database: ClassVar[bool] = True
    prunes_rows: ClassVar[bool] = True

    # ── what a subclass overrides ──

    @pytest.fixture
    def make_adapter(self) -> MakeAdapter:
        """Return a function that makes adapters, not opened yet, of one database.

        The database is empty at the start of each test; every call names the same one.
        """
        raise NotImplementedError(f"{type(self).__name__} must override the make_adapter fixture")

    @pytest.fixture
    def older_table(self) -> Callable[[], Sequence[AuditEvent]]:
        """Return a function that makes the table as an older version had it, with some rows.

        It returns the rows as events, as they are to be read once ``init`` has migrated the table.
        """
        pytest.skip("no older_table fixture: there is no older table to migrate")

    def poison(self, event: AuditEvent) -> AuditEvent:
        """Return *event* so changed that the database refuses it: without an action, unless."""
        return msgspec.structs.replace(event, action=None)

    def settle(self, adapter: Adapter) -> None:
        """Wait until what was written can be read, where that is not so at once."""

    # ── what tests use ──

    @pytest.fixture
    def open_adapter(self, make_adapter: MakeAdapter) -> Iterator[OpenAdapter]:
        """Return a function that makes and opens adapters, which are closed after the test."""
        made: list[Adapter] = []

        def open_one() -> Adapter:
            adapter = make_adapter()
            made.append(adapter)
            adapter.init()
            return adapter

        yield open_one
        for adapter in reversed(made):
            adapter.close()

    @pytest.fixture
    def adapter(self, open_adapter: OpenAdapter) -> Adapter:
        """Return an open adapter of an empty database."""
        return open_adapter()

    def store(self, adapter: Adapter, events: Iterable[AuditEvent]) -> None:
        """Insert *events*, each tenant's in a batch, as the pipeline does."""
        batches: dict[str | None, list[AuditEvent]] = {}
        for event in events:
            batches.setdefault(event.tenant_id, []).append(event)
        for tenant, batch in batches.items():
            assert adapter.bulk_insert(tenant, batch) is not False
        self.settle(adapter)

    # ── opening and closing ──

    def test_it_has_the_methods_of_the_protocol(self, make_adapter: MakeAdapter) -> None:
        assert isinstance(make_adapter(), Adapter)

    def test_it_opens_twice(self, adapter: Adapter) -> None:
        (event,) = _events(1)
        self.store(adapter, [event])
        adapter.init()
        assert read(adapter) == [event]

    def test_a_new_database_has_no_events(self, adapter: Adapter) -> None:
        assert read(adapter) == []

    def test_it_closes_twice_and_opens_again_with_everything_in_it(
        self, make_adapter: MakeAdapter
    ) -> None:
        events = _events(3)
        adapter = make_adapter()
        adapter.close()  # before it was ever open
        adapter.init()
        self.store(adapter, events[:2])
        adapter.close()
        adapter.close()
        adapter.init()
        try:
            assert read(adapter) == newest_first(events[:2])
            self.store(adapter, events[2:])
            assert read(adapter) == newest_first(events)
        finally:
            adapter.close()

    def test_several_processes_may_open_an_empty_database_at_once(
        self, open_adapter: OpenAdapter
    ) -> None:
        if not self.shares_database:
            pytest.skip("only one adapter can have the database open")
        with ThreadPoolExecutor(6) as pool:
            adapters = [job.result() for job in [pool.submit(open_adapter) for _ in range(6)]]
        events = _events(6)
        for adapter, event in zip(adapters, events, strict=True):
            self.store(adapter, [event])
        assert read(adapters[0]) == newest_first(events)

    def test_an_older_table_is_migrated_and_keeps_its_rows(
        self, older_table: Callable[[], Sequence[AuditEvent]], open_adapter: OpenAdapter
    ) -> None:
        old = list(older_table())
        adapter = open_adapter()
        assert read(adapter) == newest_first(old)
        new = samples.encode("new", tenant_id="t", outcome="success", metadata={"a": 1})
        self.store(adapter, [new])
        self.store(adapter, [new])
        assert read(adapter) == newest_first([*old, new])

    # ── inserting ──

    def test_what_is_inserted_is_read_as_it_was(self, adapter: Adapter) -> None:
        event = samples.encode(
            "course.created",
            tenant_id="t",
            actor_id="u",
            entity_type="course",
            entity_id="7",
            outcome="success",
            request_id="r",
            old_values={"title": None},
            new_values={"title": "Advanced Python", "price": 1.0, "seats": 12},
            metadata={"plan": "pro", "flags": [True, False]},
            ip_address="203.0.113.9",
            user_agent="curl/8",
        )
        event = msgspec.structs.replace(event, prev_hash="ab" * 32, content_hash="cd" * 32)
        self.store(adapter, [event])
        assert shown(read(adapter, "t")) == shown([event])

    def test_a_batch_that_comes_again_is_stored_once(self, adapter: Adapter) -> None:
        events = _events(20, tenant_id="t")
        for batch in (events[:10], events[:10], events[5:], [*events, *events]):
            self.store(adapter, batch)
        assert read(adapter, "t") == newest_first(events)

    def test_an_empty_batch_is_no_error(self, adapter: Adapter) -> None:
        assert adapter.bulk_insert("t", []) is not False
        assert read(adapter) == []

    def test_a_large_batch_is_stored_whole(self, adapter: Adapter) -> None:
        events = _events(2500, tenant_id="t", metadata={"text": "x" * 100})
        self.store(adapter, events)
        assert read(adapter, "t") == newest_first(events)

    def test_the_batches_of_many_tenants_go_in_at_once(self, adapter: Adapter) -> None:
        many = getattr(adapter, "bulk_insert_many", None)
        if many is None:
            pytest.skip("the adapter has no bulk_insert_many")
        tenants: list[str | None] = [*(f"t{number}" for number in range(40)), None]
        batches = [(tenant, _events(5, tenant_id=tenant)) for tenant in tenants]
        assert many(batches) is not False
        assert many(batches[:3]) is not False
        self.settle(adapter)
        for tenant, batch in batches:
            assert read(adapter, tenant) == newest_first(batch)
        assert len(read(adapter)) == 5 * len(batches)

    def test_of_a_batch_with_a_refused_row_nothing_is_stored(self, adapter: Adapter) -> None:
        events = _events(10, tenant_id="t")
        for place in (0, 5, 9):
            batch = [*events]
            batch[place] = self.poison(batch[place])
            with pytest.raises(RejectedEventsError):
                adapter.bulk_insert("t", batch)
            self.settle(adapter)
            assert read(adapter) == []
        self.store(adapter, events)
        assert read(adapter) == newest_first(events)

    def test_of_many_batches_with_a_refused_row_nothing_is_stored(self, adapter: Adapter) -> None:
        many = getattr(adapter, "bulk_insert_many", None)
        if many is None:
            pytest.skip("the adapter has no bulk_insert_many")
        good, bad = _events(3, tenant_id="a"), _events(3, tenant_id="b")
        bad[2] = self.poison(bad[2])
        with pytest.raises(RejectedEventsError):
            many([("a", good), ("b", bad)])
        self.settle(adapter)
        assert read(adapter) == []

    def test_a_refused_row_costs_no_other_event_of_a_trail(
        self, make_adapter: MakeAdapter, tmp_path: Path
    ) -> None:
        adapter = _Poisoning(make_adapter(), self.poison)
        with AuditTrail(namespace="poison", data_dir=tmp_path / "logbun", adapter=adapter) as trail:
            logger = logger_of(trail)
            for number in range(40):
                logger.info("poison" if number == 17 else "good", extra={"tenant_id": "t"})
            assert trail.flush(60)
            self.settle(adapter)
            assert len(list(trail.iter(tenant_id="t", action="good"))) == 39
            assert trail.stats()["dlq"]["pending_events"] == 1
            assert trail.query(tenant_id="t", action="poison").logs == []

    def test_threads_insert_and_query_at_once(self, adapter: Adapter) -> None:
        batches = [_events(10, tenant_id=f"t{number % 3}") for number in range(24)]
        with ThreadPoolExecutor(8) as pool:
            stored = [pool.submit(adapter.bulk_insert, b[0].tenant_id, b) for b in batches]
            found = [pool.submit(read, adapter, "t1") for _ in range(8)]
            assert False not in [job.result() for job in stored]
            assert all(event.tenant_id == "t1" for job in found for event in job.result())
        self.settle(adapter)
        assert read(adapter) == newest_first(event for batch in batches for event in batch)

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_forked_child_leaves_its_parent_s_connections_alone(self, adapter: Adapter) -> None:
        if not isinstance(adapter, ForkAwareAdapter) or not self.shares_database:
            pytest.skip("the adapter has no after_fork, or its database is one process's alone")
        before, of_child, of_parent = _events(3)
        self.store(adapter, [before])
        child = os.fork()
        if child == 0:
            outcome = 1
            signal.alarm(60)  # ends a child that hangs
            try:
                adapter.after_fork()
                adapter.init()
                self.store(adapter, [of_child])
                adapter.close()
                outcome = 0
            finally:
                os._exit(outcome)  # nothing of pytest's is the child's to end
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        self.store(adapter, [of_parent])
        assert read(adapter) == [of_parent, of_child, before]

    # ── the form of values ──

    def test_hostile_values_are_read_as_they_were_encoded(self, adapter: Adapter) -> None:
        events = samples.hostile_events()
        self.store(adapter, events.values())
        found = {event.id: event for event in read(adapter)}
        for name, event in events.items():
            assert event.id in found, name
            assert shown([found[event.id]]) == shown([event]), name
        assert len(found) == len(events)

    def test_hostile_values_are_found_by_filters(self, adapter: Adapter) -> None:
        events = [event for event in samples.hostile_events().values() if event.entity_id]
        self.store(adapter, events)
        for event in events:
            for name in ("actor_id", "entity_type", "entity_id", "outcome", "request_id"):
                assert read(adapter, event.tenant_id, **{name: getattr(event, name)}) == [event]
            filters = Filters(actions=(event.action,))
            assert adapter.query(ALL_TENANTS, filters, Pagination(limit=10)) == [event]

    def test_encoded_events_are_stored_as_the_events_would_be(self, adapter: Adapter) -> None:
        if not isinstance(adapter, EncodedAdapter):
            pytest.skip("the adapter has no insert_encoded")
        events = list(samples.hostile_events().values())
        batches = [(event.tenant_id, [encode_event(event)]) for event in events]
        assert adapter.insert_encoded(batches) is not False
        assert adapter.insert_encoded([*batches[:5], *batches[:5]]) is not False
        self.settle(adapter)
        found = {event.id: event for event in read(adapter)}
        for event in events:
            assert shown([found[event.id]]) == shown([event])
        self.store(adapter, events)
        assert len(read(adapter)) == len(events)

    def test_of_encoded_events_with_one_that_is_none_nothing_is_stored(
        self, adapter: Adapter
    ) -> None:
        if not isinstance(adapter, EncodedAdapter):
            pytest.skip("the adapter has no insert_encoded")
        good = [encode_event(event) for event in _events(3, tenant_id="t")]
        for bad in (b"no JSON", b"[]", b"{}", good[0].replace(b'"sample"', b"null")):
            with pytest.raises(RejectedEventsError):
                adapter.insert_encoded([("t", [*good, bad])])
            self.settle(adapter)
            assert read(adapter) == []

    # ── queries ──

    def test_a_prefix_may_end_in_the_last_character_of_all(self, adapter: Adapter) -> None:
        last = "\U0010ffff"
        events = [samples.encode(action) for action in (last, f"{last}{last}a", f"a{last}b", "b")]
        self.store(adapter, events)
        assert read(adapter, None, action=f"{last}*") == newest_first(events[:2])
        assert read(adapter, action=f"{last}{last}*") == events[1:2]
        assert read(adapter, None, action=f"a{last}*") == events[2:3]
        assert read(adapter, None, entity_id="none", action=f"{last}*") == []

    @pytest.mark.parametrize("tenant", _TENANTS, ids=repr)
    def test_every_filter_finds_what_it_names_newest_first(
        self, adapter: Adapter, tenant: TenantScope
    ) -> None:
        model, events = MemoryAdapter(), samples.sample_events()
        model.bulk_insert(None, events)
        self.store(adapter, events)
        wrong = [
            query
            for query in samples.sample_queries()
            for limit in (13, 1000)
            if read(adapter, tenant, limit=limit, **query) != read(model, tenant, **query)
        ]
        assert wrong == []

    def test_no_tenant_sees_another_s_events(self, adapter: Adapter) -> None:
        tenants: list[str | None] = ["a", "A", "a ", "%", "_", "None", None]
        self.store(adapter, (event for tenant in tenants for event in _events(2, tenant_id=tenant)))
        for tenant in tenants:
            assert [event.tenant_id for event in read(adapter, tenant)] == [tenant] * 2
        assert len(read(adapter)) == 2 * len(tenants)
        assert read(adapter, "nobody") == []

    def test_bounds_of_time_are_part_of_what_is_found(self, adapter: Adapter) -> None:
        rng = random.Random(3)
        moments = [samples.BASE + timedelta(microseconds=number) for number in range(-2, 3)]
        events = [samples.event_at(moment, rng, tenant_id="t") for moment in moments]
        self.store(adapter, events)
        offset = "2026-06-15T14:00:00+02:00"
        assert read(adapter, "t", start_date=offset) == newest_first(events[2:])
        assert read(adapter, "t", end_date=offset) == newest_first(events[:3])
        assert read(adapter, "t", start_date=offset, end_date=samples.BASE) == [events[2]]

    def test_pages_of_any_size_add_up(self, adapter: Adapter) -> None:
        rng = random.Random(4)
        events = [samples.event_at(samples.BASE, rng, tenant_id="t") for _ in range(25)]
        self.store(adapter, events)
        for limit in (1, 5, 24, 25, 26):
            assert read(adapter, "t", limit=limit) == newest_first(events)

    def test_what_arrives_while_pages_are_read_is_neither_missed_nor_doubled(
        self, adapter: Adapter
    ) -> None:
        rng = random.Random(5)
        before = [
            samples.event_at(samples.BASE + timedelta(seconds=number), rng, tenant_id="t")
            for number in range(120)
        ]
        late = [
            samples.event_at(samples.BASE + timedelta(seconds=number % 180), rng, tenant_id="t")
            for number in range(180)
        ]
        rng.shuffle(late)
        self.store(adapter, before)
        found: list[str] = []
        for event in pages(adapter, "t", limit=7):
            found.append(event.id)
            if len(found) % 7 == 0:  # some of them are newer than the place between the pages
                self.store(adapter, [late.pop() for _ in late[:10]])
        assert len(found) == len(set(found))
        assert {event.id for event in before} <= set(found)

    # ── pruning ──

    def test_old_events_are_pruned(self, adapter: Adapter) -> None:
        events = _aged()
        self.store(adapter, events.values())
        assert adapter.prune(90, dry_run=True, now=_NOW) == {None: 4}
        self.settle(adapter)
        assert len(read(adapter)) == len(events)
        assert adapter.prune(90, now=_NOW) == {None: 4}
        self.settle(adapter)
        assert read(adapter) == newest_first([events["a", 5], events["b", 5], events[None, 5]])
        assert adapter.prune(90, now=_NOW) == {None: 0}

    def test_tenants_keep_their_events_for_days_of_their_own(self, adapter: Adapter) -> None:
        events = _aged()
        self.store(adapter, events.values())
        expected = {"a": 1, "unknown": 0, None: 2}
        tenants = {"a": 365, "unknown": 30}
        assert adapter.prune(90, tenants=tenants, dry_run=True, now=_NOW) == expected
        assert adapter.prune(90, tenants=tenants, now=_NOW) == expected
        self.settle(adapter)
        kept = [("a", 5), ("a", 150), ("b", 5), (None, 5)]
        assert read(adapter) == newest_first(events[key] for key in kept)

    def test_without_days_only_the_tenants_named_are_pruned(self, adapter: Adapter) -> None:
        events = _aged()
        self.store(adapter, events.values())
        assert adapter.prune(None, now=_NOW) == {}
        assert adapter.prune(None, tenants={"b": 90}, now=_NOW) == {"b": 1}
        self.settle(adapter)
        assert read(adapter) == newest_first(e for key, e in events.items() if key != ("b", 150))

    def test_the_limit_itself_is_kept(self, adapter: Adapter) -> None:
        if not self.prunes_rows:
            pytest.skip("the adapter prunes whole months")
        rng = random.Random(6)
        limit = _NOW - timedelta(days=90)
        moments = [limit + timedelta(microseconds=number) for number in (-1, 0, 1)]
        events = [samples.event_at(moment, rng, tenant_id="t") for moment in moments]
        self.store(adapter, events)
        assert adapter.prune(90, now=_NOW) == {None: 1}
        assert read(adapter) == newest_first(events[1:])

    def test_inserts_go_on_while_old_events_are_pruned(self, adapter: Adapter) -> None:
        rng = random.Random(7)
        old = [
            samples.event_at(_NOW - timedelta(days=150), rng, tenant_id="t") for _ in range(1500)
        ]
        self.store(adapter, old)
        new = _events(30, tenant_id="t")
        with ThreadPoolExecutor(2) as pool:
            pruned = pool.submit(adapter.prune, 90, now=_NOW)
            stored = [pool.submit(adapter.bulk_insert, "t", [event]) for event in new]
            assert pruned.result() == {None: len(old)}
            assert False not in [job.result() for job in stored]
        self.settle(adapter)
        assert read(adapter) == newest_first(new)


_NOW = datetime(2026, 6, 20, 12, tzinfo=UTC)


class _Poisoning:
    """Stands before an adapter and spoils the events of the action ``"poison"``."""

    def __init__(self, adapter: Adapter, poison: Callable[[AuditEvent], AuditEvent]) -> None:
        self.init, self.query, self.prune = adapter.init, adapter.query, adapter.prune
        self.close = adapter.close
        self._insert, self._poison = adapter.bulk_insert, poison

    def bulk_insert(self, tenant_id: str | None, events: Sequence[AuditEvent]) -> bool | None:
        spoilt = [self._poison(event) if event.action == "poison" else event for event in events]
        return self._insert(tenant_id, spoilt)


def logger_of(trail: AuditTrail) -> logging.Logger:
    """Return a logger that nobody else has, with the handler of *trail*."""
    logger = logging.Logger("audit")  # noqa: LOG001 - so that nothing has to be taken off again
    logger.addHandler(trail.handler)
    return logger


def _aged() -> dict[tuple[str | None, int], AuditEvent]:
    """Return events by tenant and age in days, some older than others, each in its own month."""
    rng = random.Random(8)
    ages: list[tuple[str | None, int]] = [
        *(("a", 5), ("a", 150), ("a", 550), ("b", 5), ("b", 150), (None, 5), (None, 150)),
    ]
    return {
        (tenant, days): samples.event_at(_NOW - timedelta(days=days), rng, tenant_id=tenant)
        for tenant, days in ages
    }


def _events(count: int, **fields: Any) -> list[AuditEvent]:
    return [samples.encode("sample", entity_id=str(number), **fields) for number in range(count)]


def newest_first(events: Iterable[AuditEvent]) -> list[AuditEvent]:
    """Return *events* in the order of queries."""
    return sorted(events, key=lambda event: (event.created_at, event.id), reverse=True)


def shown(events: Iterable[AuditEvent]) -> list[bytes]:
    """Return *events* so that 1, 1.0 and True differ, and the order of keys does not matter."""
    plain = map(msgspec.structs.asdict, events)
    return [msgspec.json.encode(fields, order="sorted") for fields in plain]


def pages(
    adapter: Adapter, tenant: TenantScope = ALL_TENANTS, *, limit: int = 1000, **query: Any
) -> Iterator[AuditEvent]:
    """Yield what a query finds, page by page."""
    filters = make_filters(**query)
    after: tuple[str, str] | None = None
    while True:
        page = adapter.query(tenant, filters, Pagination(limit=limit, after=after))
        assert len(page) <= limit
        yield from page
        if len(page) < limit:
            return
        after = page[-1].created_at, page[-1].id


def read(
    adapter: Adapter, tenant: TenantScope = ALL_TENANTS, *, limit: int = 1000, **query: Any
) -> list[AuditEvent]:
    """Return everything that a query finds."""
    return list(pages(adapter, tenant, limit=limit, **query))
