"""Restarts and deaths under load: whoever got an answer has a row, and just one."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.examples.commands import serve
from tests.examples.test_tenants import headers
from tests.fakes import wait_until
from tests.servers import wait_for_rows

GUNICORN = f"gunicorn --workers 4 --pythonpath {Path(__file__).parent} durable_app:app"


class Load:
    """Clients that ask without a pause, each request another number.

    Attributes:
        answered: the numbers that got an answer, with the process that gave it, if it told.
    """

    def __init__(self, client):
        self.answered = {}
        self._client = client
        self._numbers = itertools.count()
        self._stop = threading.Event()

    def _run(self):
        while not self._stop.is_set():
            number = next(self._numbers)
            try:
                answer = self._client.post(f"/courses/{number}", headers=headers(number))
            except httpx.TransportError:
                self._stop.wait(0.01)  # not answered: nothing is promised
            else:
                if answer.is_success:
                    self.answered[number] = answer.json().get("pid")

    def more(self, count):
        """Wait for *count* more answers."""
        goal = len(self.answered) + count
        assert wait_until(lambda: len(self.answered) >= goal, 60)

    def workers(self):
        """Return the processes that have answered."""
        return {*self.answered.values()}


@contextmanager
def load(client, threads=6):
    found = Load(client)
    pool = [threading.Thread(target=found._run) for _ in range(threads)]
    for thread in pool:
        thread.start()
    try:
        yield found
    finally:
        found._stop.set()
        for thread in pool:
            thread.join(60)


def audited(folder):
    """Return the number of the request of each row."""
    return [int(row["entity_id"]) for row in wait_for_rows(folder / ".logbun/audit.db", 0)]


def check(folder, answered, per_request=1):
    """Check that each answered request has its rows, and no request has more."""
    found = audited(folder)
    assert not {*answered} - {*found}
    assert len(found) == len({*found}) * per_request


def booted(server, workers=4):
    """Tell whether all of gunicorn's workers listen to signals.

    Until then a worker has its master's handlers: SIGTERM is lost on it, and it is killed when the
    master's patience is at its end. SIGHUP is what the master alone handles.
    """
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    return len(children) == workers and not any(map(_handles_hangup, children))


def _handles_hangup(process):
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) & (1 << (signal.SIGHUP - 1)))
    return True  # it is going: not all are there


WORKERS = {
    "sync": (),
    "preloaded": ("--preload",),
    "with threads": ("--threads", "4"),
    "gevent": ("--worker-class", "gevent"),
}


@pytest.mark.parametrize("workers", WORKERS)
def test_a_rolling_restart_of_gunicorn_under_load_loses_and_doubles_nothing(workers, tmp_path):
    options = WORKERS[workers]
    if "gevent" in options:
        pytest.importorskip("gevent", reason="gevent is not installed: pip install gevent")
    with serve(GUNICORN, tmp_path, *options) as client, load(client) as clients:
        for _ in range(2):
            clients.more(50)
            before = clients.workers()
            client.process.send_signal(signal.SIGHUP)
            assert wait_until(lambda before=before: clients.workers() - before, 60)
        clients.more(50)
        assert wait_until(lambda: booted(client.process.pid), 60)
        client.process.send_signal(signal.SIGTERM)  # while they still ask
        client.process.wait(60)

    check(tmp_path, clients.answered)


@pytest.mark.parametrize(
    ("example", "options", "per_request"),
    [
        ("fastapi_app.py", (), 2),
        ("fastapi_app.py", ("--workers", "2"), 2),
        ("litestar_app.py", (), 1),
        ("flask_app.py", (), 1),
        ("flask_app.py", ("--preload",), 1),
    ],
)
def test_sigterm_under_load_loses_nothing(example, options, per_request, tmp_path):
    if "litestar" in example:
        pytest.importorskip("litestar", reason="litestar is missing: pip install -e '.[dev-all]'")
    with serve(example, tmp_path, *options) as client, load(client) as clients:
        clients.more(100)
        if example == "flask_app.py":
            assert wait_until(lambda: booted(client.process.pid), 60)
        client.process.send_signal(signal.SIGTERM)
        client.process.wait(60)

    check(tmp_path, clients.answered, per_request)


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["fresh", "preload"])
def test_what_a_killed_worker_has_audited_is_delivered_by_a_surviving_one(options, tmp_path):
    with serve(GUNICORN, tmp_path, *options) as client:
        with load(client) as clients:
            clients.more(100)
            assert wait_until(lambda: len(clients.workers()) >= 2, 60)
        victim = min(clients.workers())
        theirs = {number for number, pid in clients.answered.items() if pid == victim}
        assert not audited(tmp_path)
        os.kill(victim, signal.SIGKILL)

        def delivered():
            client.post("/flush")
            return theirs <= {*audited(tmp_path)}

        assert wait_until(delivered, 60)

    check(tmp_path, clients.answered)
