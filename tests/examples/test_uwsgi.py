"""uWSGI as it comes: a master that has loaded the application, and forks without Python's hooks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.examples.commands import serve
from tests.examples.test_restarts import audited, check, load
from tests.fakes import wait_until
from tests.servers import ROOT

HERE = Path(__file__).parent
UWSGI = (
    "uwsgi --http-socket :8000 --master --processes 3 --die-on-term --need-app "
    f"--pythonpath {HERE} --module durable_app:app"
)
THREADS = {"as it comes": (), "with threads": ("--enable-threads", "--threads", "2")}

#: Begins where a process was killed with one event in its log.
LEAVE = (
    "import os, durable_app\n"
    "durable_app.audit_logger.info('left', extra={'entity_id': '-2'})\n"
    "os.kill(os.getpid(), 9)\n"
)
BEFORE = {"fresh": set(), "event at import": {-1}, "leftover log": {-2}}

pytestmark = pytest.mark.skipif(
    not Path(sys.executable).with_name("uwsgi").exists(), reason="uWSGI is not installed"
)


def prepare(before, folder):
    """Return the environment for a beginning; leave an event where it says so."""
    if before == "leftover log":
        path = os.pathsep.join([str(ROOT), str(HERE)])
        environment = {**os.environ, "PYTHONPATH": path}
        subprocess.run(
            [sys.executable, "-c", LEAVE], cwd=folder, env=environment, check=False, timeout=60
        )
    return {"AUDIT_AT_IMPORT": "yes"} if before == "event at import" else {}


def terminate(process):
    process.send_signal(signal.SIGTERM)
    process.wait(60)


def kill_all(process):
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (process.pid, *map(int, children)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(60)


def deliver(client, folder, expected):
    """Ask workers to deliver until the rows are there: each has what it has taken itself."""

    def delivered():
        client.post("/flush")
        return expected <= {*audited(folder)}

    assert wait_until(delivered, 60), expected - {*audited(folder)}


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("before", BEFORE)
def test_each_answer_has_its_row_after_sigterm(before, threads, tmp_path):
    environment = prepare(before, tmp_path)
    with serve(UWSGI, tmp_path, *THREADS[threads], **environment) as client:
        with load(client) as clients:
            clients.more(200)
            assert wait_until(lambda: len(clients.workers()) >= 2, 60)
        deliver(client, tmp_path, BEFORE[before])
        terminate(client.process)

    check(tmp_path, clients.answered)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("end", [terminate, kill_all])
def test_each_answer_under_load_has_its_row_after_a_restart(end, before, threads, tmp_path):
    """Also after SIGTERM there may be a rest: a worker that is busy runs no exit handlers."""
    environment = prepare(before, tmp_path)
    options = THREADS[threads]
    with serve(UWSGI, tmp_path, *options, **environment) as client, load(client) as clients:
        clients.more(200)
        end(client.process)  # while they still ask
    assert len(clients.workers()) >= 2
    with serve(UWSGI, tmp_path, *options) as client:
        deliver(client, tmp_path, {*clients.answered} | BEFORE[before])
        # Not in order: uWSGI passes a signal on to workers that do not listen for it yet, and then
        # waits a minute for them.
        kill_all(client.process)

    check(tmp_path, clients.answered)
