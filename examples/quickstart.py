"""The main job in one go: configure with dictConfig, log, deliver to SQLite, query it back.

python examples/quickstart.py
"""

from __future__ import annotations

import logging
import logging.config
import tempfile
import time
from pathlib import Path

import logbun_logging

TENANTS = [f"tenant_{number}" for number in range(5)]
ACTIONS = ["course.created", "course.updated", "course.deleted", "user.login"]
EVENTS = 5_000


def configure(folder: Path) -> None:
    """Set the audit logger up as any other."""
    logging.config.dictConfig(
        {
            "version": 1,
            "handlers": {
                "audit": {
                    "class": "logbun_logging.AuditQueueHandler",
                    "namespace": "quickstart",
                    "data_dir": str(folder),
                    "mode": "durable",
                    "adapter": f"sqlite:///{folder}/audit.db",
                },
            },
            "loggers": {"audit": {"level": "INFO", "handlers": ["audit"], "propagate": False}},
        }
    )


def log_events() -> float:
    """Log from five tenants; return the seconds that the calls took."""
    audit_logger = logging.getLogger("audit")
    started = time.perf_counter()
    for number in range(EVENTS):
        with logbun_logging.audit_context(
            tenant_id=TENANTS[number % len(TENANTS)], ip_address="203.0.113.9"
        ):
            audit_logger.info(
                ACTIONS[number % len(ACTIONS)],
                extra={
                    "actor_id": f"user_{number % 42}",
                    "entity_type": "course",
                    "entity_id": f"course_{number % 700}",
                    "new_values": {"title": f"Course {number}"},
                    "metadata": {"plan": "pro"},
                },
            )
    return time.perf_counter() - started


def show(trail: logbun_logging.AuditTrail, calling: float, total: float) -> None:
    """Print what came of it."""
    page = trail.query(tenant_id="tenant_1", action="course.*", limit=5)
    print("The newest course.* events of tenant_1:\n")
    columns = ("created_at", "action", "actor_id", "entity_id", "ip_address")
    widths = [28, 16, 10, 12, 13]
    rule = "  ".join("-" * width for width in widths)
    lines = [columns, *(tuple(getattr(event, c) for c in columns) for event in page.logs)]
    for number, line in enumerate(lines):
        print("  ".join(str(cell).ljust(width) for cell, width in zip(line, widths, strict=True)))
        if number == 0:
            print(rule)
    stats = trail.stats()
    rows = {tenant: sum(1 for _ in trail.iter(tenant_id=tenant)) for tenant in TENANTS}
    print(f"\nrows by tenant    {rows}")
    print(f"accepted          {stats['accepted']:,}, in the database {sum(rows.values()):,}")
    print(f"a call took       {calling / EVENTS * 1e6:.1f} µs on average, its WAL write included")
    print(f"end to end        {EVENTS / total:,.0f} events/s, from the first call to the last row")


def main() -> None:
    """Run it all in a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        configure(Path(name))
        trail = logbun_logging.get_trail("quickstart")
        trail.ready()
        started = time.perf_counter()
        calling = log_events()
        trail.flush()
        show(trail, calling, time.perf_counter() - started)
        trail.shutdown()


if __name__ == "__main__":
    main()
