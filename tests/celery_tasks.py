"""What the workers of test_celery.py run: tasks that audit, in a folder that holds everything.

The environment variable ``FOLDER`` names it.
"""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

from celery import Celery

from logbun_logging import AuditTrail, bind_audit_context
from logbun_logging.celery import celery_signals

folder = Path(os.environ["FOLDER"])
broker = folder / "broker"
broker.mkdir(exist_ok=True)

app = Celery("tests", broker="filesystem://")
app.conf.broker_transport_options = {
    "data_folder_in": str(broker),
    "data_folder_out": str(broker),
    "control_folder": str(broker),
    "polling_interval": 0.05,
}
app.conf.worker_hijack_root_logger = False
app.conf.beat_schedule_filename = str(folder / "beat")
app.conf.beat_schedule = {
    "beat": {"task": "tests.celery_tasks.plain", "schedule": 0.1, "args": ["beat"]},
}
app.conf.worker_prefetch_multiplier = 1

celery_signals()
celery_signals()  # does nothing more

trail = AuditTrail(
    namespace="celery",
    data_dir=folder / "data",
    mode=os.environ.get("MODE", "durable"),
    adapter=f"sqlite:///{folder}/audit.db",
    # Nothing is delivered but at the end, unless a test says otherwise.
    batching={"flush_interval": float(os.environ.get("FLUSH_INTERVAL", "600"))},
    retry={"scan_interval": 0.5},
)
audit_logger = logging.getLogger("tests.celery")
audit_logger.setLevel(logging.INFO)
audit_logger.propagate = False
audit_logger.addHandler(trail.handler)


def audit(action, **extra):
    audit_logger.info(action, extra=extra)


@app.task
def plain(name="plain"):
    audit(name)


@app.task
def forgetful():
    """Leaves a binding behind, as careless code does."""
    bind_audit_context(entity_id="left behind", outcome="left behind")
    audit("forgetful")


@app.task
def failing():
    bind_audit_context(entity_id="left behind")
    audit("failing")
    raise RuntimeError("on purpose")


@app.task(bind=True, max_retries=2, default_retry_delay=0)
def retrying(self):
    audit("retrying", entity_id=str(self.request.retries))
    if self.request.retries < 2:
        raise self.retry()


@app.task
def sending():
    """Sends tasks of its own, one of them in the name of somebody else, and runs one in place."""
    plain.delay("sent")
    in_place.apply()
    bind_audit_context(actor_id="bob")
    audit("sending")
    plain.delay("sent by bob")


@app.task
def in_place():
    bind_audit_context(actor_id="eve")
    audit("in place")


@app.task
def killed():
    """Audits, and dies as of a lack of memory."""
    audit("killed")
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def touch(path):
    Path(path).touch()
