"""Celery: tasks are audited in the name of whoever sent them.

    celery --app examples.celery_app worker

and in another terminal, to send one:

    python -m examples.celery_app
"""

from __future__ import annotations

import logging.config
from pathlib import Path

from celery import Celery

from logbun_logging import audit_context
from logbun_logging.celery import celery_signals

logging.config.dictConfig(
    {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {
            "audit": {
                "class": "logbun_logging.AuditQueueHandler",
                "namespace": "celery",
                "mode": "durable",
                "adapter": "sqlite:///.logbun/audit.db",
            },
        },
        "loggers": {"audit": {"level": "INFO", "handlers": ["audit"], "propagate": False}},
    }
)
audit_logger = logging.getLogger("audit")

BROKER = Path(".logbun/broker")  # a folder will do for an example; use Redis or RabbitMQ
BROKER.mkdir(parents=True, exist_ok=True)

celery_signals()  # on both sides: where tasks are sent, and in the workers
app = Celery("shop", broker="filesystem://")
app.conf.broker_transport_options = {
    "data_folder_in": str(BROKER),
    "data_folder_out": str(BROKER),
    "control_folder": str(BROKER),
}


@app.task(name="shop.create_course")  # the module is __main__ when it sends
def create_course(course_id: str) -> None:
    audit_logger.info("course.created", extra={"entity_id": course_id})


if __name__ == "__main__":
    with audit_context(tenant_id="acme", actor_id="ann", ip_address="203.0.113.9"):
        create_course.delay("7")
