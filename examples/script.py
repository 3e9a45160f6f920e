"""A plain script: a job that audits what it does, and loses nothing on Ctrl-C or SIGTERM.

python examples/script.py
"""

from __future__ import annotations

import getpass
import logging

from logbun_logging import AuditTrail, audit_context, shutdown_on_signals

audit_logger = logging.getLogger("audit")


def import_courses(tenant_id: str, titles: list[str]) -> None:
    with audit_context(tenant_id=tenant_id, entity_type="course"):
        for number, title in enumerate(titles):
            audit_logger.info(
                "course.imported", extra={"entity_id": str(number), "new_values": {"title": title}}
            )


def main() -> None:
    shutdown_on_signals()
    with AuditTrail(
        namespace="script", mode="durable", adapter="sqlite:///.logbun/audit.db"
    ) as trail:
        audit_logger.setLevel(logging.INFO)
        audit_logger.addHandler(trail.handler)
        with audit_context(actor_id=getpass.getuser()):
            import_courses("acme", ["Advanced Python", "Databases"])
        trail.flush()
        for event in trail.query(tenant_id="acme").logs:
            print(event.created_at, event.actor_id, event.action, event.entity_id)


if __name__ == "__main__":
    main()
