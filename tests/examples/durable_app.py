"""What test_restarts.py and test_uwsgi.py serve: each answer means that its call has returned.

Like the Flask example, with times that suit a test: nothing is delivered before a worker ends, or
is asked to, and workers look often for what a dead one has left.
"""

from __future__ import annotations

import logging
import os

from flask import Flask

from logbun_logging import AuditTrail

trail = AuditTrail(
    namespace="durable",
    mode="durable",
    adapter="sqlite:///.logbun/audit.db",
    batching={"flush_interval": 600, "max_size": 10_000, "max_queue_size": 20_000},
    retry={"first_scan": 0.5, "scan_interval": 0.5},
)
audit_logger = logging.getLogger("audit")
audit_logger.setLevel(logging.INFO)
audit_logger.addHandler(trail.handler)
app = Flask(__name__)
if "AUDIT_AT_IMPORT" in os.environ:
    audit_logger.info("app.loaded", extra={"entity_id": "-1"})


@app.post("/courses/<course_id>")
def create(course_id):
    audit_logger.info("course.created", extra={"entity_id": course_id})
    return {"id": course_id, "pid": os.getpid()}


@app.post("/flush")
def flush():
    return {"delivered": trail.flush()}
