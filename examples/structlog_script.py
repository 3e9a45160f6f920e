"""structlog: bound loggers write audit events, with the values bound to them.

python examples/structlog_script.py
"""

from __future__ import annotations

import logging.config

import structlog

import logbun_logging
from logbun_logging.structlog import AuditProcessor

logging.config.dictConfig(
    {
        "version": 1,
        "handlers": {
            "audit": {
                "class": "logbun_logging.AuditQueueHandler",
                "namespace": "structlog",
                "mode": "durable",
                "adapter": "sqlite:///.logbun/audit.db",
            },
        },
        "loggers": {"audit": {"level": "INFO", "handlers": ["audit"], "propagate": False}},
    }
)
structlog.configure(
    processors=[structlog.contextvars.merge_contextvars, AuditProcessor()],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
)


def main() -> None:
    log = structlog.get_logger("audit").bind(actor_id="ann")
    with logbun_logging.audit_context(tenant_id="acme", ip_address="203.0.113.9"):
        log.info("course.created", entity_id="7", new_values={"title": "Advanced Python"})
        log.bind(entity_id="7").info("course.published", plan="pro")  # plan goes to metadata

    trail = logbun_logging.get_trail("structlog")
    trail.flush()
    for event in trail.query(tenant_id="acme").logs:
        print(event.created_at, event.actor_id, event.action, event.entity_id, event.metadata)


if __name__ == "__main__":
    main()
