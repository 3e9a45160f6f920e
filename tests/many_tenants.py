"""The life of many tenants in one process: what they log must end in their own databases.

Used with SQLite files and with namespaces of a libSQL server.
"""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from logbun_logging import AdapterUnavailableError, AuditTrail
from tests.fakes import wait_until

THREADS = 4
CONNECTIONS = 50

#: No run of retention comes by itself, and no scan: the tests say when.
_OPTIONS = {
    "namespace": "many",
    "mode": "durable",
    "pool": {"max_active_connections": CONNECTIONS},
    "retry": {"max_retries": 0, "base_delay": 0.0, "scan_interval": 3600.0, "first_scan": 3600.0},
}
_NEVER = "0 0 29 2 *"

#: Logs an event of long ago and one of now for each tenant, and dies before it has a database.
_KILLED = """
import logging, os, signal, sys, threading
from logbun_logging import AuditTrail
trail = AuditTrail(
    namespace="many", data_dir=sys.argv[1], mode="durable",
    tenancy={
        "mode": "database_per_tenant",
        "resolve_connection": lambda _: threading.Event().wait(),
    },
)
for tenant in sys.stdin.read().split():
    for action, created in (("old", 1_577_836_800.0), ("killed", None)):
        fields = {"msg": action, "levelno": logging.INFO, "levelname": "INFO", "tenant_id": tenant}
        fields |= {"created": created} if created else {}
        trail.handler.handle(logging.makeLogRecord(fields))
os.kill(os.getpid(), signal.SIGKILL)
"""


class Watch:
    """Who has which database open, and what was wrong about it.

    Attributes:
        most_open: as many were open at a time.
        violations: a text for each.
    """

    def __init__(self):
        self.most_open = 0
        self.violations = []
        self._users = {}
        self._lock = threading.Lock()

    @property
    def open_now(self):
        return set(self._users)

    def opened(self, tenant):
        with self._lock:
            if tenant in self._users:
                self.violations.append(f"{tenant} was opened twice")
            self._users[tenant] = 0
            self.most_open = max(self.most_open, len(self._users))

    def closed(self, tenant):
        with self._lock:
            if self._users.pop(tenant, 0):
                self.violations.append(f"{tenant} was closed under its user")

    @contextmanager
    def use(self, tenant):
        with self._lock:
            if tenant not in self._users:
                self.violations.append(f"{tenant} was used while it was closed")
            self._users[tenant] = self._users.get(tenant, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._users[tenant] -= 1

    def watched(self, adapter_class):
        """Return a subclass of *adapter_class* whose objects are of one tenant, and are watched."""
        watch = self

        class Watched(adapter_class):
            tenant = ""

            def init(self):
                super().init()
                watch.opened(self.tenant)

            def close(self):
                watch.closed(self.tenant)
                super().close()

            def insert_encoded(self, batches):
                if {tenant for tenant, _ in batches} != {self.tenant}:
                    watch.violations.append(f"{self.tenant} was given another one's events")
                with watch.use(self.tenant):
                    return super().insert_encoded(batches)

            def prune(self, days, **options):
                with watch.use(self.tenant):
                    return super().prune(days, **options)

        return Watched


class Tenants:
    """A trail of many tenants, each with a database of its own.

    Args:
        names: of the tenants; no blanks.
        folder: for the trail's files.
        make_adapter: returns a tenant's adapter, given a watched class and the tenant's name.
        adapter_class: what is watched.
        actions: returns the tenant and the action of each row in a tenant's database, sorted.
    """

    def __init__(self, names, folder: Path, *, make_adapter, adapter_class, actions):
        self.names = names
        self.folder = folder
        self.watch = Watch()
        self.away = False
        self._class = self.watch.watched(adapter_class)
        self._make_adapter = make_adapter
        self._actions = actions

    def resolve(self, tenant):
        if self.away:
            raise AdapterUnavailableError("away")
        adapter = self._make_adapter(self._class, tenant)
        adapter.tenant = tenant
        return adapter

    def trail(self, **options):
        return AuditTrail(
            data_dir=self.folder,
            tenancy={"mode": "database_per_tenant", "resolve_connection": self.resolve},
            **_OPTIONS,
            **options,
        )

    def kill_a_process(self):
        """Let another process log an old and a new event of each tenant, and kill it."""
        done = subprocess.run(
            [sys.executable, "-c", _KILLED, str(self.folder)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            input=" ".join(self.names),
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == -9

    def log(self, trail, rounds):
        """Log as many events of each tenant, from several threads that take their own ways."""
        logger = logging.Logger("audit")  # noqa: LOG001 - one of its own
        logger.addHandler(trail.handler)

        def run(number):
            names = [*self.names]
            for round_ in range(number, rounds, THREADS):
                random.Random(round_).shuffle(names)
                for tenant in names:
                    logger.info("%s.%s", tenant, round_, extra={"tenant_id": tenant})

        threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def assert_stored(self, expected):
        """Assert that each tenant's database has *expected* actions of its own, once, and no more.

        In an action, ``{}`` stands for the tenant.
        """
        wrong = {}
        for tenant in self.names:
            rows = sorted((tenant, action.format(tenant)) for action in expected(tenant))
            found = self._actions(tenant)
            if found != rows:
                wrong[tenant] = Counter(found) - Counter(rows), Counter(rows) - Counter(found)
        first = dict(list(wrong.items())[:3])
        assert not wrong, f"{len(wrong)} tenants have more and less than expected: {first}"
        assert self.watch.violations == []
        assert self.watch.most_open <= CONNECTIONS

    def live(self, rounds):
        """Let all threads log for all tenants, and look for it in the databases."""
        with self.trail() as trail:
            self.log(trail, rounds)
            assert trail.flush(300)
            stats = trail.stats()
            assert stats["databases"]["open"] <= CONNECTIONS
            assert stats["dlq"]["pending_events"] == 0
            for tenant in self.names[:: len(self.names) // 10]:
                page = trail.query(tenant_id=tenant).logs
                assert [event.tenant_id for event in page] == [tenant] * rounds
        self.assert_stored(lambda _: [f"{{}}.{number}" for number in range(rounds)])
        assert self.watch.open_now == set()

    def outlive(self):
        """Go through a kill, an outage of every database, redelivery, a restart and pruning."""
        self.kill_a_process()
        self.away = True
        with self.trail() as trail:
            # What the killed process left is read back, and finds no database.
            events = 2 * len(self.names)
            assert wait_until(lambda: trail.stats()["dlq"]["pending_events"] == events, 120)
            assert self.watch.open_now == set()
            self.away = False
            self.log(trail, 1)

            def delivered():
                trail.run_maintenance()
                return trail.flush(300) and trail.stats()["dlq"]["pending_events"] == 0

            assert wait_until(delivered, 300)
            assert trail.stats()["dlq"]["dead"] == 0
        self.assert_stored(lambda _: ["old", "killed", "{}.0"])
        keeps = self.names[::7]
        retention = {"days": 90, "cron": _NEVER, "tenants": dict.fromkeys(keeps, 36_500)}
        with self.trail(retention=retention) as trail:
            assert trail.prune() == {name: 0 if name in keeps else 1 for name in self.names}
        self.assert_stored(lambda name: [*(["old"] if name in keeps else []), "killed", "{}.0"])
        assert self.watch.open_now == set()
