"""One dead letter on its way to the database: in portions, tenant by tenant.

Nothing here writes a file. What is left of it is known by the places of its events.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Final, TypeAlias

from logbun_logging._engine.delivery import Delivery, Outcome, Verdict
from logbun_logging._storage.dlq import Claim, Envelope
from logbun_logging.event import Entry

__all__ = ["FileDelivery", "Health"]

#: Outages in a row after which a database counts as down.
_STRIKES: Final = 2

#: After an outage a piece of this many events shows whether the database takes anything.
_PROBE: Final = 10

#: Bytes of a file that are in memory at once.
_PORTION_BYTES: Final = 8 * 1024 * 1024

#: One tenant's part of a portion: its payloads, and their places in the file.
_Group: TypeAlias = tuple[str | None, list[tuple[int, bytes]]]


class Health:
    """Which databases a scan has found to be down.

    Args:
        delivery: knows which tenants share a database.
    """

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._outages: Counter[Hashable] = Counter()  # in a row
        self._down: set[Hashable] = set()

    def _database(self, tenant_id: str | None) -> Hashable:
        return tenant_id if self._delivery.per_tenant else None

    def note(self, tenant_id: str | None, outcome: Outcome) -> None:
        """Take notice of what came of an insert."""
        database = self._database(tenant_id)
        if outcome.verdict is not Verdict.OUTAGE:
            del self._outages[database]
            return
        self._outages[database] += 1
        if self._outages[database] >= _STRIKES:
            self._down.add(database)

    def doubtful(self, tenant_id: str | None) -> bool:
        """Tell whether the last insert has met an outage."""
        return self._outages[self._database(tenant_id)] > 0

    def down(self, tenant_id: str | None) -> bool:
        """Tell whether the tenant's database counts as down."""
        database = self._database(tenant_id)
        if database not in self._down and self._delivery.is_down(tenant_id):
            self._down.add(database)
        return database in self._down

    def keeps_out(self, envelope: Envelope | None) -> bool:
        """Tell whether nothing of a file can be delivered, because its database is down."""
        if self._delivery.per_tenant and (envelope is None or envelope.mixed):
            return False
        return self.down(envelope.tenant_id if envelope else None)


class FileDelivery:
    """Delivers one claimed file, as far as the databases take it.

    Args:
        claim: the file.
        delivery: inserts events.
        health: what is known of the databases; told of what came of each insert.
        tenant_required: events without a tenant are refused.
        stopped: tells whether it is to end early.

    Attributes:
        claim: the file.
        envelope: its envelope.
        inserted: how many of its events are in the database.
        tenants: whose events are left, of those that were tried.
        verdicts: what became of these.
        reason: the last error.
        outages: by tenant, when an insert has met an outage last (monotonic seconds); infinite if
            the database was known to be down and was not asked.
        tenant_missing: some events have no tenant, where one is required.
        piece: the most events that are inserted together.
    """

    def __init__(
        self,
        claim: Claim,
        delivery: Delivery,
        health: Health,
        *,
        tenant_required: bool,
        stopped: Callable[[], bool],
    ) -> None:
        self.claim = claim
        self.envelope = claim.envelope()
        self.inserted = 0
        self.tenants: set[str | None] = set()
        self.verdicts: set[Verdict] = set()
        self.reason = ""
        self.outages: dict[str | None, float] = {}
        self.tenant_missing = False
        self._delivery = delivery
        self._health = health
        self._tenant_required = tenant_required
        self._stopped = stopped
        self._left: set[int] = set()
        self._stopped_at: int | None = None
        self.piece = self._largest_piece()

    def _largest_piece(self) -> int:
        """Return how many events to insert at once: fewer with each attempt like an outage."""
        size = self._delivery.batch_size(self.envelope.tenant_id)
        if self.envelope.outages:
            size = min(size, self.envelope.count) >> min(2 * self.envelope.outages, 64)
        return max(1, size)

    @property
    def tried_all(self) -> bool:
        """It did not end early."""
        return self._stopped_at is None

    @property
    def complete(self) -> bool:
        """Everything is in the database."""
        return not self._left and self._stopped_at is None

    def keeps(self, place: int) -> bool:
        """Tell whether the event at *place* has to stay in the file."""
        return place in self._left or (self._stopped_at is not None and place >= self._stopped_at)

    def run(self) -> None:
        """Deliver.

        Raises:
            OSError: the file cannot be read.
        """
        entries = enumerate(self.claim.entries())
        while portion := _portion(entries, self._next_size()):
            if self._stopped() or self._health.keeps_out(self.envelope):
                self._stopped_at = portion[0][0]
                return
            groups = [*self._groups(portion)]
            if self._delivery.shared:
                self._insert(groups)
            else:
                for tenant, rows in groups:
                    size = min(self.piece, self._delivery.batch_size(tenant))
                    for at in range(0, len(rows), size):
                        self._insert([(tenant, rows[at : at + size])])

    def _next_size(self) -> int:
        """Return how much to read: little after an outage, to see whether anything gets through."""
        size = min(self.piece, self._delivery.batch_size(self.envelope.tenant_id))
        return min(size, _PROBE) if self._health.doubtful(self.envelope.tenant_id) else size

    def _groups(self, portion: Iterable[tuple[int, Entry]]) -> Iterator[_Group]:
        """Sort a portion by tenant, and refuse what no tenant's database may get."""
        found: dict[str | None, list[tuple[int, bytes]]] = defaultdict(list)
        for place, entry in portion:
            tenant = entry.tenant_id
            if not self.envelope.mixed and tenant != self.envelope.tenant_id:
                reason = f"an event of tenant {tenant!r} in a file of {self.envelope.tenant_id!r}"
                self._keep([place], tenant, Outcome(Verdict.REFUSED, reason))
            elif tenant is None and self._tenant_required:
                reason = "no tenant_id, and require_tenant_id is on"
                self.tenant_missing = True
                self._keep([place], tenant, Outcome(Verdict.REFUSED, reason))
            else:
                found[tenant].append((place, entry.payload))
        yield from found.items()

    def _insert(self, groups: Sequence[_Group]) -> None:
        if not groups:
            return
        tenant = groups[0][0]
        if self._health.down(tenant):
            outcome = Outcome(Verdict.OUTAGE, "the database is down")
            self.outages[tenant] = math.inf  # it was not tried: nothing later speaks against it
        else:
            batches = [(of, [payload for _, payload in rows]) for of, rows in groups]
            outcome = self._delivery.attempt(batches, suspect=self.envelope.outages > 0)
            self._health.note(tenant, outcome)
            if outcome.verdict is Verdict.OUTAGE:
                self.outages[tenant] = time.monotonic()
        if outcome.verdict is Verdict.STORED:
            self.inserted += sum(len(rows) for _, rows in groups)
        elif outcome.verdict is Verdict.OUTAGE:
            for of, rows in groups:
                self._keep([place for place, _ in rows], of, outcome)
        elif len(groups) > 1:  # one tenant's rows are no other's problem
            middle = len(groups) // 2
            self._insert(groups[:middle])
            self._insert(groups[middle:])
        else:
            self._bisect(*groups[0])

    def _bisect(self, tenant: str | None, rows: Sequence[tuple[int, bytes]]) -> None:
        places: dict[bytes, list[int]] = defaultdict(list)
        for place, payload in rows:
            places[payload].append(place)
        for payload, outcome in self._delivery.bisect(tenant, list(places)):
            self._keep(places.pop(payload), tenant, outcome)
            if outcome.verdict is Verdict.OUTAGE:
                self.outages[tenant] = time.monotonic()
        self.inserted += sum(map(len, places.values()))
        if tenant in self.outages:
            self._health.note(tenant, Outcome(Verdict.OUTAGE))

    def _keep(self, places: Iterable[int], tenant: str | None, outcome: Outcome) -> None:
        self._left.update(places)
        self.tenants.add(tenant)
        self.verdicts.add(outcome.verdict)
        self.reason = outcome.reason


def _portion(entries: Iterator[tuple[int, Entry]], size: int) -> list[tuple[int, Entry]]:
    portion: list[tuple[int, Entry]] = []
    room = _PORTION_BYTES
    while len(portion) < size and room > 0 and (found := next(entries, None)) is not None:
        portion.append(found)
        room -= len(found[1].payload)
    return portion
