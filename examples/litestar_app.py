"""Litestar: the same middleware, configured at start-up, shut down by a hook.

uvicorn --app-dir examples --no-proxy-headers litestar_app:app

curl -X POST localhost:8000/courses/7 -H 'Authorization: Bearer acme:ann'
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


def claims(scope: Any) -> list[str | None]:
    """Return tenant and user. Verify a real token here.

    Both come from the token: a header of its own for the tenant would let any client write into
    any tenant's trail.
    """
    header = dict(scope["headers"]).get(b"authorization", b"").decode()
    tenant, _, user = header.removeprefix("Bearer ").partition(":")
    return [tenant or None, user or None]


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
            get_tenant_id=lambda scope: claims(scope)[0],
            get_actor_id=lambda scope: claims(scope)[1],
        )
    ],
)
