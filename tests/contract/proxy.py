"""An HTTP proxy that answers by itself when it is told to: a page, a redirect, nothing, a limit."""

from __future__ import annotations

import http.client
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: Headers of a connection and not of what goes through it.
_OWN = {"transfer-encoding", "content-length", "host", "date", "server", "connection"}


class Proxy:
    """A proxy in front of a server.

    Attributes:
        port: where it listens.
        answer: status, body and headers that everybody gets; None to ask the server.
        largest: bodies longer than this get status 413; None for no limit.
    """

    def __init__(self, port, upstream):
        self.port = port
        self.upstream = upstream
        self.answer = None
        self.largest = None

    def response(self, method, path, headers, body):
        if self.answer is not None:
            return self.answer
        if self.largest is not None and len(body) > self.largest:
            return 413, b"<html>413 Request Entity Too Large</html>", {}
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=60)
        try:
            passed = {name: headers[name] for name in headers if name.lower() not in _OWN}
            connection.request(method, path, body, passed)
            got = connection.getresponse()
            data = got.read()
            passed = {name: value for name, value in got.getheaders() if name.lower() not in _OWN}
            return got.status, data, passed
        finally:
            connection.close()


@contextmanager
def proxy_before(upstream):
    """Run a :class:`Proxy` in front of the port *upstream* of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self):
            self.do_POST()

        def do_POST(self):
            body = self.body()
            status, data, headers = proxy.response(self.command, self.path, self.headers, body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def body(self):
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy = Proxy(server.server_port, upstream)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
