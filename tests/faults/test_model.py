"""WAL, buffers, DLQ and recovery against a plain model, by random sequences of what can happen.

The parts are the real ones, on real files, but without threads: the test is the listener, the flush
worker, the WAL thread and the maintenance thread, and so it can do things in any order. The model
is a dictionary of everything that was accepted. Recovery may be broken off at any record: by an
outage, by an orderly end, by a kill. At every step each of those events is in the database or in a
file that the next process would read; at the end, when every fault has been mended, each is in the
database once.
"""

from __future__ import annotations

import itertools
import math
import shutil
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from logbun_logging._engine import recovery
from logbun_logging._engine.dead_letters import DeadLetterScanner
from logbun_logging._engine.delivery import Delivery
from logbun_logging._engine.flushing import Flusher
from logbun_logging._engine.maintenance import Maintenance
from logbun_logging._engine.recovery import Recovery
from logbun_logging._engine.reporting import Reporter
from logbun_logging._engine.scheduler import Buffers
from logbun_logging._process.counters import Counters
from logbun_logging._storage.dlq import DeadLetterQueue
from logbun_logging._storage.wal import WalWriter
from logbun_logging._storage.wal.codec import read_records
from logbun_logging._tenancy.breaker import CircuitBreaker
from logbun_logging._tenancy.databases import SingleDatabase
from logbun_logging.event import AuditEvent, Entry, encode_event, new_event_id, utc_now
from logbun_logging.options import (
    BatchingOptions,
    DlqOptions,
    LimitOptions,
    RetryOptions,
    WalOptions,
)
from tests.fakes import SharedMemoryAdapter

TENANTS = st.sampled_from(["a", "b", None])


class Clock:
    """Time passes when somebody says so, and a little with every look."""

    now = 1000.0

    def __call__(self):
        self.now += 0.001
        return self.now


class Parts:
    """What a process has, without its threads."""

    def __init__(self, folder, adapter, clock):
        self.counters = Counters()
        self.databases = SingleDatabase(adapter)
        self.databases._breaker = CircuitBreaker(clock=clock, rng=lambda: 0.5)
        reporter = Reporter("model", None, self.counters)
        self.wal = WalWriter(
            folder / "wal", "never", WalOptions(segment_bytes=2048), lambda *_: None
        )
        self.dlq = DeadLetterQueue(folder / "dlq", DlqOptions())
        retry = RetryOptions(max_retries=1, max_scan_attempts=3)
        self.buffers = Buffers(
            BatchingOptions(max_size=5, max_queue_size=8),
            LimitOptions(max_total_queued=20),
            many=True,
            durable=True,
            batch_size=lambda: 10,
            clock=clock,
        )
        self.delivery = Delivery(self.databases, self.counters, 10.0, lambda: None)
        self.flusher = Flusher(
            buffers=self.buffers,
            delivery=self.delivery,
            dlq=self.dlq,
            wal=self.wal,
            retry=retry,
            tenant_required=False,
            counters=self.counters,
            reporter=reporter,
            rng=lambda: 0.5,
        )
        stopping = threading.Event()
        scanner = DeadLetterScanner(
            dlq=self.dlq,
            delivery=self.delivery,
            retry=retry,
            tenant_required=False,
            counters=self.counters,
            reporter=reporter,
            stopping=stopping,
        )
        self.recovery = Recovery(
            folder=folder,
            check=lambda: None,
            buffers=self.buffers,
            wal=self.wal,
            healthy=self.healthy,
            counters=self.counters,
            reporter=reporter,
            stopping=stopping,
        )
        self.looks_left = math.inf
        self.maintenance = Maintenance(
            recovery=self.recovery,
            dlq=self.dlq,
            scanner=scanner,
            retry=retry,
            open_database=lambda: True,
            counters=self.counters,
            reporter=reporter,
            stopping=stopping,
        )
        self.recovery._stopping.wait = lambda _: self.make_room(clock)
        self.wal.open()

    def make_room(self, clock):
        """Do what the flush worker does while recovery waits for room."""
        clock.now += 10.0
        self.flusher.run_here()

    def healthy(self):
        """Tell recovery that it may go on, until it has looked so often."""
        self.looks_left -= 1
        return self.looks_left >= 0

    def die(self):
        """Let go of everything as the kernel does."""
        self.wal.abandon()
        self.maintenance.abandon()
        self.delivery.close()


class Model(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(recovery, "_PORTION", 3)  # so that a file has several
        self.root = Path(tempfile.mkdtemp(prefix="model-"))
        self.folder = self.root / "ns"
        self.adapter = SharedMemoryAdapter()
        self.clock = Clock()
        self.accepted = {}
        self.others = []
        self.parts = Parts(self.folder, self.adapter, self.clock)

    @initialize()
    def folder_exists(self):
        (self.folder / "dlq").mkdir(parents=True, exist_ok=True)

    def teardown(self):
        try:
            self.mend_everything()
            stored = {event_id: event.action for event_id, event in self.adapter.events.items()}
            assert not self.on_disk()
            assert stored == self.accepted
        finally:
            for parts in (self.parts, *self.others):
                parts.die()
            shutil.rmtree(self.root)
            self.patch.undo()

    # ── what an application does ──

    @rule(tenant=TENANTS, count=st.integers(1, 12), poison=st.booleans())
    def log(self, tenant, count, poison):
        """Do what ``Pipeline.submit`` and the listener do."""
        for number in range(count):
            action = "poison" if poison and number == 0 else "good"
            event = AuditEvent(new_event_id(), utc_now(), action, "u", tenant)
            entry = Entry(tenant, encode_event(event))
            admitted = self.parts.buffers.admit(entry) == "admitted"
            assert self.parts.wal.append(entry)
            self.accepted[event.id] = action
            if admitted:
                self.parts.buffers.put([entry])
            else:
                assert self.parts.wal.defer(entry)

    # ── what the threads do ──

    @rule(seconds=st.sampled_from([0.0, 1.0, 6.0]))
    def deliver(self, seconds):
        """Let time pass, and the flush worker work."""
        self.clock.now += seconds
        self.parts.flusher.run_here()

    @rule()
    def maintain_wal(self):
        self.parts.wal.maintain()

    @rule()
    def seal(self):
        self.parts.wal._seal()

    @rule()
    def spill(self):
        self.parts.flusher.spill(drop=False)

    @rule()
    def maintain(self):
        """Recover, read back, scan."""
        assert self.parts.maintenance.run_pass()

    @rule()
    def requeue(self):
        for file in self.parts.dlq.list("dead"):
            assert self.parts.dlq.requeue(file.name)

    # ── what goes wrong ──

    @rule(down=st.booleans())
    def switch_database(self, down):
        self.adapter.down = down

    @rule(poison=st.booleans())
    def switch_poison(self, poison):
        self.adapter.poison = "poison" if poison else None

    @rule()
    def break_dlq(self):
        if not (self.root / "dlq-moved").exists():
            (self.folder / "dlq").rename(self.root / "dlq-moved")
            (self.folder / "dlq").write_text("a file where the folder should be")

    @rule()
    def mend_dlq(self):
        if (self.root / "dlq-moved").exists():
            (self.folder / "dlq").unlink()
            (self.root / "dlq-moved").rename(self.folder / "dlq")

    @rule()
    def break_segment(self):
        """Let a write to the current segment fail: healing has to write everything anew."""
        self.parts.wal._mark_failed(self.parts.wal._current, OSError("torn"))
        self.parts.wal.maintain()

    @rule()
    def crash(self):
        """Die, and start anew."""
        self.parts.die()
        self.parts = Parts(self.folder, self.adapter, self.clock)

    @precondition(lambda self: len(self.others) < 2)
    @rule()
    def another_process(self):
        """Go on in another process beside this one."""
        self.others.append(self.parts)
        self.parts = Parts(self.folder, self.adapter, self.clock)

    @precondition(lambda self: self.others)
    @rule()
    def switch_process(self):
        self.others.append(self.parts)
        self.parts = self.others.pop(0)

    @precondition(lambda self: self.others)
    @rule()
    def other_process_dies(self):
        self.others.pop().die()

    @rule(looks=st.integers(0, 8), killed=st.booleans(), ends=st.booleans())
    def break_recovery_off(self, looks, killed, ends):
        """Let an outage begin while files are read, and perhaps the process end in order then."""
        if killed:
            self.crash()
        self.parts.looks_left = looks
        self.parts.maintenance.run_pass()
        if ends:
            self.shut_down(clean=False)
        else:
            self.parts.looks_left = math.inf

    @rule(clean=st.booleans())
    def shut_down(self, clean):
        """End in order, with time to deliver or without."""
        parts = self.parts
        if clean:
            parts.buffers.make_all_due()
            parts.flusher.run_here()
        for part in parts.buffers.drain():
            parts.flusher.leave_behind([part])
        parts.maintenance.stop(0)
        parts.delivery.close()
        parts.wal.close()
        self.parts = Parts(self.folder, self.adapter, self.clock)

    # ── what holds ──

    def on_disk(self):
        """Return the payloads that the next process would find."""
        found = set()
        for top in (self.folder, self.root / "dlq-moved"):
            for path in top.rglob("*"):
                if path.is_file() and (path.suffix == ".aof" or ".batch" in path.name):
                    with path.open("rb") as file:
                        found.update(payload for payload, whole in read_records(file) if whole)
        return found

    @invariant()
    def everything_accepted_is_in_the_database_or_in_a_file(self):
        text = b"\n".join(self.on_disk())
        for event_id in self.accepted.keys() - self.adapter.events.keys():
            assert event_id.encode() in text, "lost"

    @invariant()
    def nothing_is_counted_as_lost_or_damaged(self):
        for parts in (self.parts, *self.others):
            assert (parts.counters["lost"], parts.counters["corrupt"]) == (0, 0)

    @invariant()
    def memory_is_bounded_and_the_books_are_right(self):
        for parts in (self.parts, *self.others):
            assert 0 <= parts.buffers.events <= 20
            assert sum(parts.buffers.depths().values()) == parts.buffers.events

    def mend_everything(self):
        self.adapter.down, self.adapter.poison = False, None
        self.mend_dlq()
        for parts in self.others:
            parts.die()
        self.others.clear()
        for _ in range(400):
            self.parts.wal.maintain()
            self.requeue()
            self.maintain()
            self.parts.buffers.make_all_due()
            self.deliver(400.0)
            if not self.on_disk():
                return
            if not self.parts.buffers.events and not self.parts.recovery.deferred():
                self.parts.wal._seal()
                self.parts.wal.maintain()


Model.TestCase.settings = settings(
    max_examples=50,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestModel = Model.TestCase


@pytest.mark.parametrize("how", ["an outage", "an orderly end", "an outage, then the end"])
def test_recovery_may_be_broken_off_at_any_record(how):
    for count, looks in itertools.product(range(1, 11), range(8)):
        model = Model()
        model.folder_exists()
        try:
            model.log("a", count, poison=False)
            model.crash()
            model.parts.looks_left = looks
            if how == "an orderly end":
                real = model.parts.healthy
                stop = model.parts.recovery._stopping.set
                model.parts.recovery._healthy = lambda real=real, stop=stop: real() or not stop()
            model.parts.maintenance.run_pass()
            model.everything_accepted_is_in_the_database_or_in_a_file()
            if how != "an outage":
                model.shut_down(clean=False)
                model.everything_accepted_is_in_the_database_or_in_a_file()
            model.parts.looks_left = math.inf
            model.nothing_is_counted_as_lost_or_damaged()
        finally:
            model.teardown()
