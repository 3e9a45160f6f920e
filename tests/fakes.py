"""Adapters for faults that no real database causes on demand."""

from __future__ import annotations

import threading

from logbun_logging import AdapterUnavailableError
from logbun_logging._process.worker import WorkerThread
from logbun_logging.query import AllTenants


class MemoryAdapter:
    """Keeps events in memory, and fails as it is told to.

    Attributes:
        events: stored events by id, in the order of their arrival.
        batches: tenant and size of every insert that was tried.
        down: raise as an unreachable database does.
        poison: raise for batches with an event of this action.
        gate: inserts wait for it; set unless a test clears it.
    """

    def __init__(self, error=RuntimeError):
        self.events = {}
        self.batches = []
        self.down = False
        self.poison = None
        self.error = error
        self.gate = threading.Event()
        self.gate.set()
        self.called = threading.Event()
        self.closed = 0

    def init(self):
        if self.down:
            raise AdapterUnavailableError("down")

    def bulk_insert(self, tenant_id, events):
        self.batches.append((tenant_id, len(events)))
        self.called.set()
        self.gate.wait(30)
        if self.down:
            raise AdapterUnavailableError("down")
        if any(event.action == self.poison for event in events):
            raise self.error("poison")
        for event in events:
            self.events.setdefault(event.id, event)
        return True

    def query(self, tenant_id, filters, pagination):
        if self.down:
            raise AdapterUnavailableError("down")
        found = [
            event
            for event in self.events.values()
            if isinstance(tenant_id, AllTenants) or event.tenant_id == tenant_id
        ]
        found.sort(key=lambda event: (event.created_at, event.id), reverse=True)
        return found[: pagination.limit]

    def prune(self, days, *, tenants=None, dry_run=False, now=None):
        return {}

    def close(self):
        self.closed += 1
        self.gate.set()


class SharedMemoryAdapter(MemoryAdapter):
    """The same, taking the batches of several tenants at once."""

    def bulk_insert_many(self, batches):
        for tenant_id, events in batches:
            self.bulk_insert(tenant_id, events)
        return True


def start_thread(name, run):
    """Start a thread as a pipeline does, where there is none."""
    worker = WorkerThread(name, run, lambda *_: None)
    worker.start()
    return worker


def wait_until(condition, timeout=10.0):
    """Wait for a condition that no event tells of; return whether it came true."""
    pause = threading.Event()
    for _ in range(int(timeout / 0.01)):
        if condition():
            return True
        pause.wait(0.01)
    return bool(condition())
