"""libSQL servers that the tests of a module share."""

from __future__ import annotations

import socket

import pytest

from tests.contract import sqld


@pytest.fixture(scope="module")
def start_sqld(tmp_path_factory):
    """Start servers of one's own with the options of :class:`sqld.Sqld`; they end with the module.

    Skips, and says why, where there is no server.
    """
    started = []

    def start(**options):
        server = sqld.Sqld(sqld.skip_without_server(), tmp_path_factory.mktemp("sqld"), **options)
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def names_of_localhost(monkeypatch):
    """Let every name that ends in ``.localhost`` be this machine, as a resolver should."""
    look_up = socket.getaddrinfo

    def find(host, *arguments, **options):
        ours = isinstance(host, str) and host.endswith(".localhost")
        return look_up("127.0.0.1" if ours else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", find)
