"""A real PostgreSQL server that belongs to the tests."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg

from tests.fakes import wait_until

PASSWORD = "correct horse"


def binaries():
    """Return the folder of the newest PostgreSQL's programs, or None."""
    found = shutil.which("postgres")
    folders = [Path(found).parent] if found else []
    folders += sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name)
    )
    return next((folder for folder in reversed(folders) if (folder / "initdb").exists()), None)


def load_example():
    """Return the module of the documentation's adapter."""
    path = Path(__file__).parents[2] / "examples" / "postgres_adapter.py"
    spec = importlib.util.spec_from_file_location("postgres_adapter", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class PostgresServer:
    """Starts and stops one server, and makes it hang.

    Args:
        programs: the folder of ``initdb`` and ``postgres``.
    """

    def __init__(self, programs):
        self.programs = programs
        self.port = free_port()
        # Not in pytest's folder: PostgreSQL does not run as root, and its user must get there.
        self.folder = Path(tempfile.mkdtemp(prefix="logbun-postgres-"))
        self.who = {}
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
            self.who = {"user": "postgres", "group": "postgres", "extra_groups": []}
        self.process = None
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        subprocess.run(
            [
                *(self.programs / "initdb", "--pgdata", self.folder / "data", "--no-sync"),
                *("--username", "audit", "--pwfile", secret, "--auth", "scram-sha-256"),
                *("--encoding", "UTF8", "--locale", "C.UTF-8"),
            ],
            cwd=self.folder,
            check=True,
            capture_output=True,
            timeout=120,
            **self.who,
        )

    def dsn(self, password=PASSWORD, port=None):
        return psycopg.conninfo.make_conninfo(
            host="127.0.0.1",
            port=self.port if port is None else port,
            user="audit",
            password=password,
            dbname="postgres",
        )

    def start(self):
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(self.programs / "postgres", "-D", self.folder / "data", "-p", str(self.port)),
                    *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
                    *("-c", "fsync=off"),  # nothing here cuts the power
                ],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                **self.who,
            )
        assert wait_until(self._answers, 60), (self.folder / "log").read_text()

    def _answers(self):
        try:
            psycopg.connect(self.dsn(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self):
        """End it without a checkpoint, as a crash does.

        SIGQUIT and not SIGKILL, which would leave its children and its shared memory behind.
        """
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(60)

    def pause(self):
        self._signal(signal.SIGSTOP)

    def resume(self):
        self._signal(signal.SIGCONT)

    def _signal(self, number):
        pid = self.process.pid
        os.kill(pid, number)  # first, so that no new children come
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(child), number)

    def remove(self):
        if self.process is not None:
            self.stop()
        shutil.rmtree(self.folder)
