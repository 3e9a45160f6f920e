"""Litestar: the same middleware, configured at start-up, shut down by a hook.

uvicorn --app-dir examples --no-proxy-headers litestar_app:app

curl -X POST localhost:8000/courses/7 -H 'X-Tenant: acme' -H 'X-User: ann'
"""

from __future__ import annotations

import logging
from typing import Any

from litestar import Litestar, post
from litestar.middleware import DefineMiddleware

from logbun_logging import AuditTrail
from logbun_logging.middleware import AuditASGIMiddleware

audit_logger = logging.getLogger("audit")


def start(app: Litestar) -> None:
    app.state.trail = AuditTrail(
        namespace="litestar", mode="durable", adapter="sqlite:///.logbun/audit.db"
    )
    audit_logger.setLevel(logging.INFO)
    audit_logger.addHandler(app.state.trail.handler)


async def stop(app: Litestar) -> None:
    audit_logger.removeHandler(app.state.trail.handler)
    await app.state.trail.ashutdown()


def header(name: bytes) -> Any:
    return lambda scope: dict(scope["headers"]).get(name, b"").decode() or None


@post("/courses/{course_id:str}")
async def create(course_id: str) -> dict[str, str]:
    audit_logger.info("course.created", extra={"entity_id": course_id})
    return {"id": course_id}


app = Litestar(
    [create],
    on_startup=[start],
    on_shutdown=[stop],
    middleware=[
        DefineMiddleware(
            AuditASGIMiddleware,
            trusted_proxies=["127.0.0.1"],
            get_tenant_id=header(b"x-tenant"),
            get_actor_id=header(b"x-user"),  # what a gateway has authenticated
        )
    ],
)
