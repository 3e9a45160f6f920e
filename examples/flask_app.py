"""Flask: configured when the module is imported; each worker drains by itself when it ends.

gunicorn --workers 4 --threads 8 --pythonpath examples flask_app:app

curl -X POST localhost:8000/courses/7 -H 'Authorization: Bearer acme:ann'
"""

from __future__ import annotations

import logging.config
from typing import Any

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


def claims(environ: dict[str, Any]) -> list[str | None]:
    """Return tenant and user. Verify a real token here.

    Both come from the token: a header of its own for the tenant would let any client write into
    any tenant's trail.
    """
    tenant, _, user = environ.get("HTTP_AUTHORIZATION", "").removeprefix("Bearer ").partition(":")
    return [tenant or None, user or None]


app = Flask(__name__)
app.wsgi_app = AuditWSGIMiddleware(
    app.wsgi_app,
    trusted_proxies=["127.0.0.1"],
    get_tenant_id=lambda environ: claims(environ)[0],
    get_actor_id=lambda environ: claims(environ)[1],
)


@app.post("/courses/<course_id>")
def create(course_id: str) -> dict[str, str]:
    audit_logger.info("course.created", extra={"entity_id": course_id})
    return {"id": course_id}
