"""FastAPI: configured in ``lifespan``, shut down there; each request brings its own context.

uvicorn --app-dir examples --no-proxy-headers fastapi_app:app

curl -X POST localhost:8000/courses/7 -H 'Authorization: Bearer acme:ann'
"""

from __future__ import annotations

import logging.config
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import BackgroundTasks, Depends, FastAPI, Header

import logbun_logging
from logbun_logging.middleware import AuditASGIMiddleware

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {
        "audit": {
            "class": "logbun_logging.AuditQueueHandler",
            "namespace": "fastapi",
            "mode": "durable",
            "adapter": "sqlite:///.logbun/audit.db",
        },
    },
    "loggers": {"audit": {"level": "INFO", "handlers": ["audit"], "propagate": False}},
}

audit_logger = logging.getLogger("audit")


@asynccontextmanager
async def lifespan(app: FastAPI):
    logging.config.dictConfig(LOGGING)
    yield
    await logbun_logging.get_trail("fastapi").ashutdown()


async def current_user(authorization: Annotated[str, Header()]) -> str:
    # async def: a plain dependency runs in another thread, where what it binds is lost.
    # Verify a real token here. The tenant comes from the token: a header of its own would let any
    # client write into any tenant's trail.
    tenant, _, user = authorization.removeprefix("Bearer ").partition(":")
    logbun_logging.bind_audit_context(tenant_id=tenant, actor_id=user)
    return user


app = FastAPI(lifespan=lifespan)
app.add_middleware(AuditASGIMiddleware, trusted_proxies=["127.0.0.1"])


def publish(course_id: str) -> None:
    audit_logger.info("course.published", extra={"entity_id": course_id})


@app.post("/courses/{course_id}", dependencies=[Depends(current_user)])
async def create(course_id: str, tasks: BackgroundTasks) -> dict[str, str]:
    audit_logger.info("course.created", extra={"entity_id": course_id})
    tasks.add_task(publish, course_id)  # runs after the answer, with the request's context
    return {"id": course_id}
