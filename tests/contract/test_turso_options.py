"""What TursoAdapter is told, and what it tells nobody."""

from __future__ import annotations

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from logbun_logging import AdapterUnavailableError, BatchTooLargeError, ConfigurationError
from logbun_logging.adapters import TursoAdapter, create_adapter
from logbun_logging.adapters.turso import adapter as turso
from logbun_logging.testing import samples
from tests.contract import sqld

pytestmark = sqld.needs_driver


@pytest.mark.parametrize(
    ("given", "url", "token"),
    [
        ("libsql://db-org.turso.io", "https://db-org.turso.io", None),
        ("libsql://db-org.turso.io?auth_token=s3cret", "https://db-org.turso.io", "s3cret"),
        ("libsql://db-org.turso.io?authToken=s3cret", "https://db-org.turso.io", "s3cret"),
        ("libsql://db-org.turso.io?authToken=", "https://db-org.turso.io", None),
        ("libsql://localhost:8080?tls=0", "http://localhost:8080", None),
        ("libsql://localhost:8080/?tls=1", "https://localhost:8080/", None),
        ("http://localhost:8080", "http://localhost:8080", None),
        ("https://h/path?auth_token=s3cret", "https://h/path", "s3cret"),
        ("file:audit.db", "file:audit.db", None),
        ("file:/var/audit.db", "file:/var/audit.db", None),
        ("file:///var/audit.db", "file:/var/audit.db", None),
    ],
)
def test_urls_are_understood(given, url, token):
    adapter = TursoAdapter(given)
    assert (adapter.url, adapter._current_token()) == (url, token)


@pytest.mark.parametrize(
    "url",
    [
        *("", "turso.io", "mysql://h", "libsql://", "http://:80", "http://h:port", "file:", None),
        *("libsql://user:s3cret@h", "http://h#part", "http://h?colour=red", "http://h?tls=0"),
        *("libsql://h?tls=2", "libsql://h?auth_token=s3cret&authToken=other", "file://h/a.db"),
        *("file:a.db?mode=ro", "libsql://h?auth_token", b"libsql://h"),
    ],
)
def test_urls_that_mean_nothing_are_refused(url):
    with pytest.raises(ConfigurationError, match=r"adapter\.url=") as caught:
        TursoAdapter(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "instead"),
    [("ws://h?auth_token=s3cret", "http://…"), ("wss://s3cret@h", "https://…")],
)
def test_websockets_are_refused_and_the_error_says_what_to_use(url, instead):
    with pytest.raises(ConfigurationError, match=r"adapter\.url=.*WebSockets") as caught:
        TursoAdapter(url)
    assert instead in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_the_driver_that_was_dropped_is_refused_and_the_error_says_what_to_use():
    text = "adapter.driver='libsql': this driver is no longer supported; allowed is 'libsql-client'"
    with pytest.raises(ConfigurationError, match=text):
        TursoAdapter("libsql://h", driver="libsql")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("timeout", 0), ("timeout", 3601), ("timeout", "1"), ("timeout", True)),
        *(("driver", "sqlite"), ("driver", None)),
        *(("auth_token", ""), ("auth_token", 7), ("auth_token", b"token")),
    ],
)
def test_options_that_are_wrong_are_refused(option, value):
    with pytest.raises(ConfigurationError, match=rf"adapter\.{option}="):
        TursoAdapter("libsql://h", **{option: value})


@pytest.mark.parametrize(
    ("url", "warns"),
    [
        *(("http://db:8080", True), ("libsql://db?tls=0", True)),
        *(("https://db", False), ("libsql://db", False)),
        *(("http://127.0.0.1:8080", False), ("file:audit.db", False)),
    ],
)
@pytest.mark.filterwarnings("default:.*unencrypted")
def test_a_token_that_goes_over_a_network_in_clear_is_warned_of(url, warns, recwarn):
    TursoAdapter(url)
    assert not recwarn
    for token in ("s3cret", lambda: "s3cret"):
        TursoAdapter(url, auth_token=token)
    texts = [str(warning.message) for warning in recwarn]
    assert all("go to db unencrypted" in text and "s3cret" not in text for text in texts)
    assert bool(texts) == warns


def test_a_token_is_given_once():
    with pytest.raises(ConfigurationError, match="given once") as caught:
        TursoAdapter("libsql://h?auth_token=s3cret", auth_token="s3cret")
    assert "s3cret" not in str(caught.value)


def test_a_missing_driver_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(turso, "find_spec", lambda name: None if name == "libsql_client" else 1)
    with pytest.raises(ConfigurationError) as caught:
        TursoAdapter("libsql://h")
    assert "install the extra 'turso' of logbun-logging" in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    [
        "libsql://h?auth_token=s3cret",
        {"url": "libsql://h", "auth_token": "s3cret"},
        {"type": "turso", "url": "https://h", "auth_token": "s3cret"},
        {"type": "TursoAdapter", "url": "https://h", "auth_token": "s3cret"},
    ],
)
def test_it_is_made_from_urls_and_mappings(spec):
    adapter = create_adapter(spec)
    assert repr(adapter) == "TursoAdapter(url='https://h', driver='libsql-client')"
    assert adapter._current_token() == "s3cret"


def test_a_wrong_argument_in_a_mapping_shows_no_token():
    with pytest.raises(ConfigurationError) as caught:
        create_adapter({"type": "turso", "url": "https://h", "auth_token": "s3cret", "tls": 1})
    assert "s3cret" not in str(caught.value)


def test_importing_the_adapter_imports_no_driver():
    code = (
        "import sys; from logbun_logging.adapters import TursoAdapter; "
        "sys.exit(bool({'libsql_client', 'aiohttp'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def answering():
    """Serve the same answer to everybody; yield its URL, and a function that sets the answer."""
    answer = [200, b""]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            token = self.headers.get("Authorization", "").encode()
            body = answer[1].replace(b"TOKEN", token)
            self.send_response(answer[0])
            if 300 <= answer[0] < 400:
                self.send_header("Location", "/login")
            kind = "application/json" if body.startswith(b"{") else "text/plain"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield (
        f"http://127.0.0.1:{server.server_port}",
        lambda *new: answer.__setitem__(slice(None), new),
    )
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (200, b"<html>Welcome to the hotel's network</html>", AdapterUnavailableError),
        (200, b"{}", AdapterUnavailableError),
        (200, b'{"results": []}', AdapterUnavailableError),
        (200, b'{"results": [{"type": "ok"}]}', AdapterUnavailableError),
        (200, b"", AdapterUnavailableError),
        (204, b"", AdapterUnavailableError),
        (302, b"", AdapterUnavailableError),
        (307, b"", AdapterUnavailableError),
        (502, b"bad gateway", AdapterUnavailableError),
        (404, b"{}", AdapterUnavailableError),
        (401, b'{"error": "TOKEN"}', AdapterUnavailableError),
        (500, b'{"message": "no such token: TOKEN"}', AdapterUnavailableError),
        (413, b"too large", BatchTooLargeError),
    ],
)
def test_what_is_not_an_answer_of_the_database_is_an_outage(answering, status, body, error):
    url, set_answer = answering
    set_answer(status, body)
    adapter = TursoAdapter(url, auth_token=lambda: "s3cret", timeout=10)
    with pytest.raises(error) as caught:
        adapter.bulk_insert("t", [samples.encode("a", tenant_id="t")])
    assert "s3cret" not in str(caught.value)
    adapter.close()


def test_a_token_that_cannot_be_had_is_an_outage_without_a_secret():
    def token():
        raise RuntimeError("s3cret")

    adapter = TursoAdapter("http://127.0.0.1:1", auth_token=token)
    with pytest.raises(AdapterUnavailableError, match="auth_token") as caught:
        adapter.init()
    assert "s3cret" not in str(caught.value)
