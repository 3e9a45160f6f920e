"""A ClickHouse HTTP endpoint for tests: the real engine behind a small server of our own.

There is no ClickHouse server to be had as a package, but there is its engine, chdb. This program
takes requests as ClickHouse's HTTP interface does, hands query, parameters, settings and rows to
chdb, and answers in the format that was asked for, or with the engine's own error and its code.

What tests on it prove: the real client's requests, over real sockets, are understood by the real
engine; rows come back as they went in; and the adapter stands a server that is away, hangs, is
killed, or refuses a password. What they do not prove: anything that ClickHouse's own HTTP server,
access rights, Keeper, replication or the collecting of asynchronous inserts do, for here is none of
it. The password is checked against a file, and ``async_insert`` is accepted and has no effect.

The engine knows two clusters: ``one`` has one shard and ``two`` has two, all of them this process.
``ON CLUSTER`` and the replicated engine need Keeper, so they are taken out of statements here;
the ``Distributed`` table is real, and so are the inserts and queries that go through it.
"""

from __future__ import annotations

import base64
import binascii
import email
import os
import re
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.contract.postgres import free_port
from tests.fakes import wait_until

USER = "audit"
PASSWORD = "it's a secret/@:"

#: What belongs to HTTP and not to the query; chdb knows none of it.
TRANSPORT = {
    *("query", "database", "session_id", "wait_end_of_query", "client_protocol_version", "role"),
    *("enable_http_compression", "send_progress_in_http_headers", "query_id", "compress"),
    *("http_headers_progress_interval_ms", "cancel_http_readonly_queries_on_client_close"),
    # The engine would look for a queue that only a server has.
    *("async_insert", "wait_for_async_insert"),
}
SHARD = (
    "<shard><internal_replication>true</internal_replication><replica>"
    "<host>127.0.0.1</host><port>9000</port></replica></shard>"
)
#: A replica of our own address and port is no connection but this engine; nobody listens there.
CONFIG = (
    f"<clickhouse><tcp_port>9000</tcp_port><remote_servers><one>{SHARD}</one>"
    f"<two>{SHARD}{SHARD}</two></remote_servers></clickhouse>"
)
NEEDS_KEEPER = re.compile(
    r" ON CLUSTER `\w+`|Replicated(?=ReplacingMergeTree\()|'/clickhouse/tables.*?'[^)]*"
)
INSERT = re.compile(rb"\s*(INSERT\s+INTO\s.+?)\s+FORMAT\s+(\w+)\n", re.IGNORECASE | re.DOTALL)
ERROR_CODE = re.compile(r"Code: (\d+)")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for the client's acknowledgement
    folder: Path
    connect: staticmethod
    query_id = None

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        if self.path.startswith("/ping"):
            self.answer(200, b"Ok.\n")
        else:
            self.do_POST()

    def do_POST(self):
        body = self.body()
        if not self.is_allowed():
            text = (
                b"Code: 516. DB::Exception: audit: Authentication failed. (AUTHENTICATION_FAILED)"
            )
            self.answer(403, text, {"X-ClickHouse-Exception-Code": "516"})
            return
        query = urllib.parse.urlsplit(self.path).query
        given = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        if self.headers.get_content_type() == "multipart/form-data":
            given |= self.form(body)
            body = b""
        self.query_id = given.get("query_id") or str(uuid.uuid4())
        try:
            query = given.get("query", "").encode()
            self.answer(200, *self.run(given, query + b"\n" + body if query else body))
        except Exception as error:
            text = str(error)
            found = ERROR_CODE.search(text)
            code = {"X-ClickHouse-Exception-Code": found[1]} if found else {}
            self.answer(500, text.encode(), code)

    def run(self, given, statement):
        connection = self.connect()
        try:
            for name, value in given.items():
                if name not in TRANSPORT and not name.startswith("param_"):
                    text = value.replace("\\", "\\\\").replace("'", "\\'")
                    connection.query(f"SET {name} = '{text}'", "TabSeparated")
            insert = INSERT.match(statement)
            if insert is not None:
                with connection.send_insert(insert[1].decode(), insert[2].decode()) as sink:
                    sink.append(statement[insert.end() :])
                    sink.finish()
                return b"", {}
            parameters = {
                name.removeprefix("param_"): value
                for name, value in given.items()
                if name.startswith("param_")
            }
            text = NEEDS_KEEPER.sub("", statement.decode())
            result = connection.query(text, "TabSeparated", params=parameters)
            found = result.bytes() or b""
            return found, {"X-ClickHouse-Format": "TabSeparated"} if found else {}
        finally:
            connection.close()

    def is_allowed(self):
        kind, _, text = self.headers.get("Authorization", "").partition(" ")
        try:
            login = base64.b64decode(text).decode()
        except (binascii.Error, UnicodeDecodeError):
            return False
        return kind == "Basic" and login == f"{USER}:{(self.folder / 'password').read_text()}"

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            data = b"".join(iter(self.chunk, b""))
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        encoding = self.headers.get("Content-Encoding")
        if encoding == "lz4":
            import lz4.frame

            data = lz4.frame.decompress(data)
        elif encoding is not None:
            raise ValueError(f"no {encoding} here")
        return data

    def form(self, body):
        """Return the fields of a form, in which the client sends what is too long for a URL."""
        kind = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        return {
            part.get_param("name", header="content-disposition"): part.get_payload(
                decode=True
            ).decode()
            for part in email.message_from_bytes(kind + body).get_payload()
        }

    def chunk(self):
        data = self.rfile.read(int(self.rfile.readline().partition(b";")[0], 16))
        self.rfile.readline()
        return data

    def answer(self, status, body, headers=None):
        self.send_response(status)
        if self.query_id is not None:  # as the server does in every answer to a query
            self.send_header("X-ClickHouse-Query-Id", self.query_id)
            self.send_header("X-ClickHouse-Timezone", "UTC")
            self.send_header("X-ClickHouse-Summary", '{"written_rows":"0"}')
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class Endpoint(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64


def serve(folder, port):
    import chdb

    (folder / "config.xml").write_text(CONFIG)

    def connect():
        return chdb.connect(f"{folder / 'data'}?config-file={folder / 'config.xml'}")

    keeper = connect()  # with the last connection the engine would end
    keeper.query("SELECT 1", "TabSeparated")
    Handler.folder = folder
    Handler.connect = staticmethod(connect)
    Endpoint(("127.0.0.1", port), Handler).serve_forever()


class ClickHouseServer:
    """Starts and stops the endpoint, and makes it hang.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder):
        self.folder = folder
        self.port = free_port()
        self.process = None
        self.let_in(PASSWORD)

    def let_in(self, password):
        """Take no other password from now on."""
        (self.folder / "password").write_text(password)

    def start(self):
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(self.folder), str(self.port)],
                cwd=Path(__file__).parents[2],
                stdout=log,
                stderr=log,
            )
        assert wait_until(self._answers, 60), (self.folder / "log").read_text()

    def _answers(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ping", timeout=5):
                return True
        except OSError:
            assert self.process.poll() is None, (self.folder / "log").read_text()
            return False

    def stop(self):
        self.process.kill()
        self.process.wait(60)

    def pause(self):
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self):
        os.kill(self.process.pid, signal.SIGCONT)

    def run(self, statement):
        """Run a statement, past the adapter."""
        login = base64.b64encode(f"{USER}:{(self.folder / 'password').read_text()}".encode())
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/",
            statement.encode(),
            {"Authorization": f"Basic {login.decode()}"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read().decode()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
