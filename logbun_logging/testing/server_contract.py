"""What adapters of a database behind a network must do besides: stand its failures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar, Final, Protocol, TypeVar

import pytest

from logbun_logging.adapters.base import Adapter
from logbun_logging.errors import AdapterUnavailableError, NotReadyError
from logbun_logging.event import AuditEvent
from logbun_logging.options import RetryOptionsDict
from logbun_logging.query import Pagination, make_filters
from logbun_logging.testing import samples
from logbun_logging.testing.contract import (
    AdapterContract,
    MakeAdapter,
    logger_of,
    newest_first,
    read,
)
from logbun_logging.trail import AuditTrail

__all__ = ["Server", "ServerContract"]

T = TypeVar("T")

#: Retries that do not wait long, and scans that only come when they are asked for.
_QUICK: Final[RetryOptionsDict] = {
    "max_retries": 1,
    "base_delay": 0.01,
    "scan_interval": 3600.0,
    "first_scan": 3600.0,
}


class Server(Protocol):
    """A database server that the tests own: they stop it, and it must come back with its data.

    Each call returns once its effect is there: after ``start``, connections are answered.
    """

    def start(self) -> None:
        """Start it after a stop."""
        ...

    def stop(self) -> None:
        """End it at once, as ``kill -9`` does."""
        ...

    def pause(self) -> None:
        """Let it hang, as ``kill -STOP`` does: connections stay open and nothing answers."""
        ...

    def resume(self) -> None:
        """Let it go on."""
        ...


class ServerContract(AdapterContract):
    """The tests for an adapter whose database is a server.

    Attributes:
        answers_within: seconds within which every call on a server that is away or hangs must have
            raised; give the adapters that ``make_adapter`` makes a time-out well below.
    """

    answers_within: ClassVar[float] = 15.0

    # ── what a subclass overrides ──

    @pytest.fixture
    def server(self) -> Server:
        """Return the server behind ``make_adapter``; it must run at the end of a test as before."""
        raise NotImplementedError(f"{type(self).__name__} must override the server fixture")

    @pytest.fixture
    def unreachable_adapter(self) -> Adapter:
        """Return an adapter of a server that does not exist: a port where nobody listens."""
        raise NotImplementedError(f"{type(self).__name__} must override unreachable_adapter")

    @pytest.fixture
    def denied_adapter(self) -> Adapter:
        """Return an adapter with credentials that the server refuses."""
        pytest.skip("no denied_adapter fixture: the server takes everybody")

    @pytest.fixture
    def revoked(self) -> AbstractContextManager[None]:
        """Return a context in which the server refuses the adapters' credentials, and drops them.

        Connections that are open do not work on in it; after it, all is as before.
        """
        pytest.skip("no revoked fixture: the server takes everybody")

    # ── no server, no access ──

    def test_a_server_that_is_not_there_is_unavailable(self, unreachable_adapter: Adapter) -> None:
        self.assert_unavailable(unreachable_adapter.init)
        unreachable_adapter.close()

    def test_refused_credentials_are_unavailable(self, denied_adapter: Adapter) -> None:
        self.assert_unavailable(denied_adapter.init)
        denied_adapter.close()

    def test_credentials_that_are_revoked_meanwhile_are_unavailable_until_they_are_back(
        self, adapter: Adapter, revoked: AbstractContextManager[None]
    ) -> None:
        before, after = _batch("before"), _batch("after")
        self.store(adapter, before)
        with revoked:
            self.assert_unavailable(lambda: adapter.bulk_insert("t", after))
            self.assert_unavailable(lambda: _first_page(adapter))
        self.insert_at_last(adapter, after)
        self.settle(adapter)
        assert read(adapter, "t") == newest_first([*before, *after])

    # ── a server that goes and comes back ──

    def test_a_stopped_server_is_unavailable_and_found_again(
        self, adapter: Adapter, server: Server
    ) -> None:
        before, lost, after = _batch("before"), _batch("lost"), _batch("after")
        self.store(adapter, before)
        server.stop()
        try:
            self.assert_unavailable(lambda: adapter.bulk_insert("t", lost))
            self.assert_unavailable(lambda: _first_page(adapter))
        finally:
            server.start()
        self.insert_at_last(adapter, after)
        self.settle(adapter)
        assert read(adapter, "t") == newest_first([*before, *after])

    def test_a_hanging_server_is_unavailable_and_found_again(
        self, adapter: Adapter, server: Server
    ) -> None:
        before, hung, after = _batch("before"), _batch("hung"), _batch("after")
        self.store(adapter, before)
        server.pause()
        try:
            self.assert_unavailable(lambda: adapter.bulk_insert("t", hung))
            self.assert_unavailable(lambda: _first_page(adapter))
        finally:
            server.resume()
        self.insert_at_last(adapter, after)
        self.insert_at_last(adapter, hung)  # stored or not at the first time: now it is, once
        self.settle(adapter)
        assert read(adapter, "t") == newest_first([*before, *hung, *after])

    def test_a_server_killed_while_batches_go_in_loses_and_doubles_nothing(
        self, adapter: Adapter, server: Server
    ) -> None:
        batches = [_batch(f"batch {number}", 50) for number in range(40)]
        some_are_in, killed = threading.Event(), threading.Event()

        def insert_all() -> None:
            for number, batch in enumerate(batches):
                if number == 5:
                    some_are_in.set()
                self.insert_at_last(adapter, batch)
                if number == 20:
                    killed.wait(self.answers_within)

        thread = threading.Thread(target=insert_all, daemon=True)
        thread.start()
        assert some_are_in.wait(60)
        server.stop()
        killed.set()
        server.start()
        thread.join(120)
        assert not thread.is_alive()
        self.settle(adapter)
        assert read(adapter, "t") == newest_first(event for batch in batches for event in batch)

    # ── the same through a trail ──

    def test_a_trail_that_starts_without_its_server_heals(
        self, make_adapter: MakeAdapter, server: Server, tmp_path: Path
    ) -> None:
        server.stop()
        try:
            trail = _trail(make_adapter(), tmp_path)
            logger = logger_of(trail)
            logger.info("early", extra={"tenant_id": "t"})
            assert trail.flush(60)
            assert not trail.stats()["ready"]
            with pytest.raises(NotReadyError):
                trail.query(tenant_id="t")
        finally:
            server.start()
        with trail:
            self.assert_all_arrive(trail, ["early"])

    @pytest.mark.parametrize("fault", ["stop", "pause"])
    def test_a_trail_loses_and_doubles_nothing_while_its_server_is_away(
        self, make_adapter: MakeAdapter, server: Server, tmp_path: Path, fault: str
    ) -> None:
        with _trail(make_adapter(), tmp_path) as trail:
            logger = logger_of(trail)
            actions = [f"a{number}" for number in range(300)]
            for action in actions[:100]:
                logger.info(action, extra={"tenant_id": "t"})
            assert trail.flush(60)
            away, back = (
                (server.stop, server.start) if fault == "stop" else (server.pause, server.resume)
            )
            away()
            try:
                for action in actions[100:200]:
                    logger.info(action, extra={"tenant_id": "t"})
                assert trail.flush(60)  # after the retries to the DLQ
                assert trail.stats()["dlq"]["pending_events"] == 100
                with pytest.raises(NotReadyError):
                    trail.query(tenant_id="t")
            finally:
                back()
            for action in actions[200:]:
                logger.info(action, extra={"tenant_id": "t"})
            self.assert_all_arrive(trail, actions)

    # ── what these tests are made of ──

    def assert_unavailable(self, call: Callable[[], object]) -> None:
        """Assert that *call* raises AdapterUnavailableError, and in time."""
        outcome: list[BaseException | None] = []

        def run() -> None:
            try:
                call()
            except BaseException as error:
                outcome.append(error)
            else:
                outcome.append(None)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(self.answers_within)
        assert outcome, f"the call has not returned after {self.answers_within:g} s"
        assert isinstance(outcome[0], AdapterUnavailableError), repr(outcome[0])

    def insert_at_last(self, adapter: Adapter, events: list[AuditEvent]) -> None:
        """Insert *events* as the pipeline does: again after an outage, until they are stored."""
        deadline = time.monotonic() + 4 * self.answers_within
        while True:
            try:
                assert adapter.bulk_insert(events[0].tenant_id, events) is not False
            except AdapterUnavailableError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def assert_all_arrive(self, trail: AuditTrail, actions: list[str]) -> None:
        """Assert that the database gets every action once, from memory and the DLQ."""
        deadline = time.monotonic() + 4 * self.answers_within
        found: list[str] = []
        while time.monotonic() < deadline and len(found) < len(actions):
            trail.run_maintenance()
            try:
                found = [event.action for event in trail.iter(tenant_id="t")]
            except NotReadyError:
                time.sleep(0.05)
        assert sorted(found) == sorted(actions)
        assert trail.stats()["dlq"]["pending_events"] == 0


def _batch(name: str, size: int = 5) -> list[AuditEvent]:
    return [samples.encode(name, tenant_id="t", entity_id=str(number)) for number in range(size)]


def _first_page(adapter: Adapter) -> list[AuditEvent]:
    return adapter.query("t", make_filters(), Pagination(limit=10))


def _trail(adapter: Adapter, folder: Path) -> AuditTrail:
    return AuditTrail(
        namespace="contract",
        data_dir=folder / "logbun",
        mode="durable",
        adapter=adapter,
        retry=_QUICK,
    )
