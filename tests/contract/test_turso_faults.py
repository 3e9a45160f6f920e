"""TursoAdapter when servers, tokens, processes and sizes are not as they should be."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from logbun_logging import AdapterUnavailableError, RejectedEventsError
from logbun_logging.adapters import TursoAdapter
from logbun_logging.adapters.turso.driver import StatementError
from logbun_logging.query import ALL_TENANTS, Pagination, make_filters
from logbun_logging.testing import samples
from logbun_logging.testing.contract import logger_of, newest_first, read
from tests.adapters.test_forking import in_a_child
from tests.contract import sqld
from tests.contract.older_tables import INSERT, OLDER_TABLES, old_events, old_row
from tests.fakes import wait_until

pytestmark = sqld.needs_driver

#: Retries that do not wait long, and scans that only come when they are asked for.
QUICK = {"max_retries": 1, "base_delay": 0.01, "scan_interval": 3600.0, "first_scan": 3600.0}


@pytest.fixture(scope="module")
def module_server(start_sqld):
    return start_sqld(options=["--max-response-size", "1MB"])


@pytest.fixture
def server(module_server):
    module_server.empty()
    return module_server


@pytest.fixture
def adapter(server):
    adapter = TursoAdapter(server.url(), timeout=10)
    adapter.init()
    yield adapter
    adapter.close()


def events(number, tenant="t", **fields):
    return [samples.encode(f"a{n}", tenant_id=tenant, **fields) for n in range(number)]


def arrived(trail, expected, tenant="t"):
    """Look whether the database has *expected* events, after another scan of the DLQ."""
    trail.run_maintenance()
    try:
        return len(list(trail.iter(tenant_id=tenant))) >= expected
    except Exception:
        return False


# ── servers that go ──


def test_a_server_killed_again_and_again_loses_and_doubles_nothing(server, make_trail):
    trail = make_trail(
        mode="durable",
        adapter=TursoAdapter(server.url(), timeout=5),
        batching={"max_size": 50, "flush_interval": 0.05},
        retry={**QUICK, "max_retries": 3},
    )
    logger = logger_of(trail)
    actions = [f"a{number}" for number in range(2000)]
    halves = [threading.Event() for _ in range(3)]

    def log():
        for number, action in enumerate(actions):
            logger.info(action, extra={"tenant_id": f"t{number % 5}"})
            if number % 500 == 499 and number < 1999:
                assert halves[number // 500].wait(30)

    thread = threading.Thread(target=log)
    thread.start()
    for half in halves:
        assert wait_until(lambda: trail.stats()["inserted"] > 0, 30)
        server.stop()
        half.set()
        server.start()
    thread.join(60)
    assert wait_until(lambda: arrived(trail, len(actions), ALL_TENANTS), 60)
    found = [event.action for event in trail.iter(tenant_id=ALL_TENANTS)]
    assert sorted(found) == sorted(actions)


def test_callers_do_not_wait_for_a_server_that_hangs(server, make_trail):
    trail = make_trail(
        mode="durable",
        adapter=TursoAdapter(server.url(), timeout=60),
        batching={"max_size": 10, "flush_interval": 0.01},
        retry=QUICK,
        insert_timeout=60,
    )
    logger = logger_of(trail)
    logger.info("before", extra={"tenant_id": "t"})
    assert trail.flush(30)
    server.pause()
    try:
        # Nothing but this thread lets the server go on: were it to wait, this would never end.
        for number in range(500):
            logger.info("during", extra={"tenant_id": "t", "entity_id": str(number)})
    finally:
        server.resume()
    assert trail.flush(60)
    assert wait_until(lambda: arrived(trail, 501), 60)
    assert len(list(trail.iter(tenant_id="t"))) == 501


def test_events_wait_while_the_token_is_revoked(start_sqld, make_trail):
    server = start_sqld(key=sqld.new_key())
    tokens = [server.token()]
    trail = make_trail(
        mode="durable",
        adapter=TursoAdapter(server.url(), timeout=10, auth_token=lambda: tokens[-1]),
        retry=QUICK,
    )
    logger = logger_of(trail)
    logger.info("before", extra={"tenant_id": "t"})
    assert trail.flush(30)
    server.stop()
    server.key = sqld.new_key()
    server.start()
    logger.info("revoked", extra={"tenant_id": "t"})
    assert trail.flush(30)
    for _ in range(12):
        trail.run_maintenance()
    assert trail.stats()["dlq"]["pending_events"] == 1
    assert trail.stats()["dlq"]["dead"] == 0
    tokens.append(server.token())
    assert wait_until(lambda: arrived(trail, 2), 60)
    server.stop()


def test_a_connection_that_has_gone_costs_no_failure(server, adapter):
    (first, second) = events(2)
    adapter.bulk_insert("t", [first])
    server.stop()
    server.start()
    adapter.bulk_insert("t", [second])
    assert read(adapter) == newest_first([first, second])


# ── several at once ──


def test_several_processes_may_migrate_an_older_table_at_once(server):
    def migrate(_):
        adapter = TursoAdapter(server.url(), timeout=15)
        adapter.init()
        found = read(adapter)
        adapter.close()
        return found

    old = old_events()
    server.run(OLDER_TABLES["no key"], *((INSERT, *old_row(event)) for event in old))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(migrate, range(4))) == [newest_first(old)] * 4


def test_a_write_that_waits_for_others_waits_no_longer_than_it_may(server):
    adapter = TursoAdapter(server.url(), timeout=2)
    adapter.init()
    server.pause()
    try:
        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(adapter.bulk_insert, "t", events(1)) for _ in range(4)]
            errors = [job.exception() for job in jobs]
    finally:
        server.resume()
    assert all(isinstance(error, AdapterUnavailableError) for error in errors)
    assert any("other writes took all of timeout=2 s" in str(error) for error in errors)
    adapter.close()


def test_a_statement_that_the_server_has_interrupted_is_run_again():
    answers = [StatementError("SQLITE_INTERRUPT", "interrupted"), [[]]]

    class Interrupted:
        def run(self, statements, timeout):
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

    adapter = TursoAdapter("http://127.0.0.1:1")
    adapter._driver = Interrupted()  # no server does it when it is asked to
    assert read(adapter) == []
    assert answers == []


# ── sizes ──


def test_a_page_larger_than_the_server_sends_at_once_comes_whole(adapter):
    large = events(60, metadata={f"k{n}": "x" * 2000 for n in range(30)})
    adapter.bulk_insert("t", large)
    found = adapter.query("t", make_filters(), Pagination(limit=50))
    assert found == newest_first(large)[:50]
    assert read(adapter, "t") == newest_first(large)


def test_a_row_larger_than_the_server_sends_at_once_is_said_to_be(adapter):
    adapter.bulk_insert("t", [_huge(1_500_000)])
    with pytest.raises(AdapterUnavailableError, match="RESPONSE_TOO_LARGE"):
        read(adapter)


def test_a_transaction_may_be_larger_than_a_message(adapter):
    batches = [(f"t{n}", events(20, f"t{n}", metadata=_bag(40))) for n in range(12)]
    spoilt = msgspec.structs.replace(batches[-1][1][-1], action=None)
    with pytest.raises(RejectedEventsError):
        adapter.bulk_insert_many([*batches[:-1], ("t11", [*batches[-1][1][:-1], spoilt])])
    assert adapter.query(ALL_TENANTS, make_filters(), Pagination(limit=1)) == []
    adapter.bulk_insert_many(batches)
    for tenant, batch in batches[::11]:
        assert read(adapter, tenant, limit=5) == newest_first(batch)


def test_a_row_that_no_message_can_hold_is_refused(adapter):
    with pytest.raises(RejectedEventsError):
        adapter.bulk_insert("t", [_huge(20_000_000)])
    (good,) = events(1)
    adapter.bulk_insert("t", [good])
    assert read(adapter) == [good]


def _bag(keys):
    return {f"k{n}": "ä" * 1000 for n in range(keys)}


def _huge(size):
    (event,) = events(1)
    return msgspec.structs.replace(event, metadata={"text": "x" * size})


# ── forks and ends ──


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_has_a_connection_of_its_own(adapter):
    def child():
        adapter.after_fork()
        adapter.bulk_insert("child", events(3, "child"))
        assert len(read(adapter, "child")) >= 3

    adapter.bulk_insert("parent", events(1, "parent"))
    assert [in_a_child(child) for _ in range(3)] == [0, 0, 0]
    adapter.bulk_insert("parent", events(1, "parent"))
    assert len(read(adapter, "parent")) == 2
    assert len(read(adapter, "child")) == 9


def test_a_script_that_just_ends_has_delivered(server, tmp_path):
    code = (
        "import logging, sys\n"
        "from logbun_logging import AuditQueueHandler\n"
        "adapter = {'type': 'turso', 'url': sys.argv[1]}\n"
        "logger = logging.getLogger('audit')\n"
        "logger.setLevel('INFO')\n"
        "logger.addHandler(AuditQueueHandler(namespace='end', adapter=adapter))\n"
        "for number in range(100):\n"
        "    logger.info('a.b', extra={'tenant_id': 't', 'entity_id': str(number)})\n"
    )
    # By name: it has to be looked up, which the executor of an event loop refuses to do at exit.
    url = server.url().replace("127.0.0.1", "localhost")
    done = subprocess.run(
        [sys.executable, "-c", code, url],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    adapter = TursoAdapter(server.url())
    assert len(read(adapter, "t")) == 100
    adapter.close()
