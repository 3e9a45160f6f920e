"""Adapters with one fault each, and the test of the contract that is there to find it.

Run by ``test_contract_itself.py``, as a suite of its own in which every class fails.
"""

from __future__ import annotations

import unicodedata

import msgspec
import pytest

from logbun_logging.errors import AdapterUnavailableError, RejectedEventsError
from logbun_logging.query import AllTenants
from logbun_logging.testing import AdapterContract, MemoryAdapter

#: Test class to the test that finds its fault.
FAULTS = {}


def fault(found_by):
    """Make a test class of an adapter class."""

    def register(kind):
        def make_adapter(self):
            adapter = kind()
            return lambda: adapter

        name = f"Test{kind.__name__}"
        members = {"make_adapter": pytest.fixture(make_adapter)}
        globals()[name] = type(name, (AdapterContract,), members)
        FAULTS[name] = found_by
        return kind

    return register


class Changing(MemoryAdapter):
    """Changes events on their way in."""

    def bulk_insert_many(self, batches):
        return super().bulk_insert_many(
            [(tenant, [self.change(event) for event in events]) for tenant, events in batches]
        )


class Asking(MemoryAdapter):
    """Asks for something else than what it is asked for."""

    def query(self, tenant_id, filters, pagination):
        return super().query(*self.ask(tenant_id, filters, pagination))


# ── opening and inserting ──


@fault("test_it_opens_twice")
class MakesTheTableAnew(MemoryAdapter):
    def init(self):
        self._events.clear()


@fault("test_it_closes_twice_and_opens_again_with_everything_in_it")
class ForgetsWhenClosed(MemoryAdapter):
    def close(self):
        self._events.clear()


@fault("test_a_batch_that_comes_again_is_stored_once")
class RefusesWhatIsThere(MemoryAdapter):
    def bulk_insert_many(self, batches):
        if any(event.id in self._events for _, events in batches for event in events):
            raise RejectedEventsError("UNIQUE constraint failed")
        return super().bulk_insert_many(batches)


@fault("test_a_batch_that_comes_again_is_stored_once")
class StoresAgainWhatIsThere(MemoryAdapter):
    def bulk_insert_many(self, batches):
        for _, events in batches:
            for event in events:
                self._events[event.id, len(self._events)] = event
        return True


@fault("test_of_a_batch_with_a_refused_row_nothing_is_stored")
class StoresTheRestOfABatch(MemoryAdapter):
    def bulk_insert_many(self, batches):
        for tenant, events in batches:
            for event in events:
                super().bulk_insert_many([(tenant, [event])])
        return True


@fault("test_of_a_batch_with_a_refused_row_nothing_is_stored")
class SaysNothingOfARefusedRow(MemoryAdapter):
    def bulk_insert_many(self, batches):
        return super().bulk_insert_many([(t, [e for e in b if e.action]) for t, b in batches])


@fault("test_of_a_batch_with_a_refused_row_nothing_is_stored")
class TakesARefusedRowForAnOutage(MemoryAdapter):
    def bulk_insert_many(self, batches):
        try:
            return super().bulk_insert_many(batches)
        except RejectedEventsError as error:
            raise AdapterUnavailableError("something went wrong") from error


@fault("test_of_many_batches_with_a_refused_row_nothing_is_stored")
class StoresSomeOfManyBatches(MemoryAdapter):
    def bulk_insert_many(self, batches):
        for batch in batches:
            super().bulk_insert_many([batch])
        return True


@fault("test_a_large_batch_is_stored_whole")
class CutsLargeBatches(MemoryAdapter):
    def bulk_insert_many(self, batches):
        return super().bulk_insert_many([(t, b[:2000]) for t, b in batches])


@fault("test_the_batches_of_many_tenants_go_in_at_once")
class StoresTheFirstOfManyBatches(MemoryAdapter):
    def bulk_insert_many(self, batches):
        return super().bulk_insert_many(batches[:1])


# ── the form of values ──


@fault("test_hostile_values_are_read_as_they_were_encoded")
class TakesEmptyForNothing(Changing):
    def change(self, event):
        return msgspec.structs.replace(event, metadata=event.metadata or None)


@fault("test_hostile_values_are_read_as_they_were_encoded")
class NormalizesText(Changing):
    def change(self, event):
        agent = event.user_agent and unicodedata.normalize("NFC", event.user_agent)
        return msgspec.structs.replace(event, user_agent=agent)


@fault("test_hostile_values_are_read_as_they_were_encoded")
class ReadsIntegersAsFloats(Changing):
    def change(self, event):
        values = event.new_values and {
            key: float(value) if type(value) is int else value
            for key, value in event.new_values.items()
        }
        return msgspec.structs.replace(event, new_values=values)


@fault("test_what_is_inserted_is_read_as_it_was")
class HasNoColumnForAHash(Changing):
    def change(self, event):
        return msgspec.structs.replace(event, content_hash=None)


@fault("test_bounds_of_time_are_part_of_what_is_found")
class KeepsTimesInMilliseconds(Changing):
    def change(self, event):
        return msgspec.structs.replace(event, created_at=f"{event.created_at[:-4]}000Z")


# ── queries ──


@fault("test_no_tenant_sees_another_s_events")
class IgnoresTheCaseOfTenants(Changing):
    def change(self, event):
        return msgspec.structs.replace(event, tenant_id=event.tenant_id and event.tenant_id.lower())


@fault("test_no_tenant_sees_another_s_events")
class ShowsEverythingToNobody(Asking):
    def ask(self, tenant_id, filters, pagination):
        return (AllTenants() if tenant_id is None else tenant_id), filters, pagination


@fault("test_every_filter_finds_what_it_names_newest_first")
class TakesAnActionForAPrefix(Asking):
    def ask(self, tenant_id, filters, pagination):
        prefixes = (*filters.action_prefixes, *filters.actions)
        return tenant_id, msgspec.structs.replace(filters, action_prefixes=prefixes), pagination


@fault("test_every_filter_finds_what_it_names_newest_first")
class ForgetsPrefixesBesideActions(Asking):
    def ask(self, tenant_id, filters, pagination):
        if filters.actions:
            filters = msgspec.structs.replace(filters, action_prefixes=())
        return tenant_id, filters, pagination


@fault("test_every_filter_finds_what_it_names_newest_first")
class TakesOneOfTwoFilters(Asking):
    def ask(self, tenant_id, filters, pagination):
        return tenant_id, msgspec.structs.replace(filters, equal=filters.equal[:1]), pagination


@fault("test_bounds_of_time_are_part_of_what_is_found")
class EndsBeforeTheEnd(Asking):
    def ask(self, tenant_id, filters, pagination):
        end = filters.end and f"{filters.end[:-1]}"  # without the Z it sorts before itself
        return tenant_id, msgspec.structs.replace(filters, end=end), pagination


@fault("test_pages_of_any_size_add_up")
class PagesByTimeAlone(Asking):
    def ask(self, tenant_id, filters, pagination):
        after = pagination.after and (pagination.after[0], "")
        return tenant_id, filters, msgspec.structs.replace(pagination, after=after)


@fault("test_what_arrives_while_pages_are_read_is_neither_missed_nor_doubled")
class PagesByNumber(MemoryAdapter):
    """Skips as many rows as were read, as OFFSET does."""

    skipped = 0

    def query(self, tenant_id, filters, pagination):
        if pagination.after is None:
            self.skipped = 0
        everything = msgspec.structs.replace(pagination, after=None, limit=10**9)
        found = super().query(tenant_id, filters, everything)[self.skipped :][: pagination.limit]
        self.skipped += len(found)
        return found


@fault("test_pages_of_any_size_add_up")
class OrdersTheWrongWayRound(MemoryAdapter):
    def query(self, tenant_id, filters, pagination):
        return super().query(tenant_id, filters, pagination)[::-1]


# ── pruning ──


@fault("test_the_limit_itself_is_kept")
class PrunesTheLimitToo(MemoryAdapter):
    def prune(self, days, *, now=None, **options):
        moment = now.replace(microsecond=now.microsecond + 1)
        return super().prune(days, now=moment, **options)


@fault("test_old_events_are_pruned")
class PrunesInADryRun(MemoryAdapter):
    def prune(self, days, *, dry_run=False, **options):
        return super().prune(days, **options)


@fault("test_old_events_are_pruned")
class PrunesWithoutSayingWhat(MemoryAdapter):
    def prune(self, days, **options):
        return dict.fromkeys(super().prune(days, **options), 0)


@fault("test_tenants_keep_their_events_for_days_of_their_own")
class PrunesAllTenantsAlike(MemoryAdapter):
    def prune(self, days, *, tenants=None, **options):
        return {**dict.fromkeys(tenants or (), 0), **super().prune(days, **options)}


@fault("test_inserts_go_on_while_old_events_are_pruned")
class LosesWhatComesWhileItPrunes(MemoryAdapter):
    def prune(self, days, **options):
        report = super().prune(days, **options)
        if report.get(None, 0) > 1000:
            self.bulk_insert_many = lambda batches: True
        return report
