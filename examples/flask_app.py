"""Flask: configured when the module is imported; each worker drains by itself when it ends.

gunicorn --workers 4 --threads 8 --pythonpath examples flask_app:app

curl -X POST localhost:8000/courses/7 -H 'X-Tenant: acme' -H 'X-User: ann'
"""

from __future__ import annotations

import logging.config

from flask import Flask

from logbun_logging.middleware import AuditWSGIMiddleware

logging.config.dictConfig(
    {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {
            "audit": {
                "class": "logbun_logging.AuditQueueHandler",
                "namespace": "flask",
                "mode": "durable",
                "adapter": "sqlite:///.logbun/audit.db",
            },
        },
        "loggers": {"audit": {"level": "INFO", "handlers": ["audit"], "propagate": False}},
    }
)
audit_logger = logging.getLogger("audit")

app = Flask(__name__)
app.wsgi_app = AuditWSGIMiddleware(
    app.wsgi_app,
    trusted_proxies=["127.0.0.1"],
    get_tenant_id=lambda environ: environ.get("HTTP_X_TENANT"),
    get_actor_id=lambda environ: environ.get("HTTP_X_USER"),  # what a gateway has authenticated
)


@app.post("/courses/<course_id>")
def create(course_id: str) -> dict[str, str]:
    audit_logger.info("course.created", extra={"entity_id": course_id})
    return {"id": course_id}
