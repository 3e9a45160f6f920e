"""ClickHouse over HTTP: the real client and the real engine; see ``clickhouse_http``."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from contextlib import contextmanager

import pytest

from logbun_logging import AdapterUnavailableError, AuditTrail
from logbun_logging.adapters import ClickHouseAdapter
from logbun_logging.adapters.clickhouse.table import tenant_key
from logbun_logging.errors import BatchTooLargeError
from logbun_logging.event import encode_event
from logbun_logging.testing import AdapterContract, ServerContract, samples
from logbun_logging.testing.contract import logger_of, newest_first, read
from tests.contract.clickhouse_http import PASSWORD, USER, ClickHouseServer
from tests.contract.clickhouse_older import OLDER_TABLES, make_older_table
from tests.contract.postgres import free_port
from tests.contract.proxy import proxy_before

if importlib.util.find_spec("chdb") is None:
    pytest.skip("chdb is missing: pip install -e '.[dev-all]'", allow_module_level=True)


@pytest.fixture(scope="session")
def clickhouse(tmp_path_factory):
    server = ClickHouseServer(tmp_path_factory.mktemp("clickhouse"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(clickhouse):
    clickhouse.run("DROP TABLE IF EXISTS audit_logs SYNC")
    clickhouse.run("DROP TABLE IF EXISTS audit_logs_local SYNC")
    yield clickhouse
    clickhouse.let_in(PASSWORD)


@pytest.fixture
def make_adapter(server):
    def make(**options):
        options = {"password": PASSWORD, "timeout": 3, **options}
        return ClickHouseAdapter(host="127.0.0.1", port=server.port, username=USER, **options)

    return make


class TestClickHouseOverHTTP(ServerContract):
    prunes_rows = False

    # A thousand queries for each tenant: the others' are asked without HTTP, where it is quicker.
    @pytest.mark.parametrize("tenant", ["t1", None], ids=repr)
    def test_every_filter_finds_what_it_names_newest_first(self, adapter, tenant):
        super().test_every_filter_finds_what_it_names_newest_first(adapter, tenant)

    @pytest.fixture
    def server(self, server):
        return server

    @pytest.fixture
    def make_adapter(self, make_adapter):
        return make_adapter

    @pytest.fixture
    def unreachable_adapter(self):
        return ClickHouseAdapter(host="127.0.0.1", port=free_port(), timeout=3)

    @pytest.fixture
    def denied_adapter(self, make_adapter):
        return make_adapter(password="wrong")

    @pytest.fixture
    def revoked(self, server):
        @contextmanager
        def refuse():
            server.let_in("another")
            yield
            server.let_in(PASSWORD)

        return refuse()

    @pytest.fixture(params=OLDER_TABLES.values(), ids=OLDER_TABLES)
    def older_table(self, request, server):
        return lambda: make_older_table(server.run, request.param)


class TestClickHouseCluster(AdapterContract):
    """Through the distributed table; see ``clickhouse_http`` for what is not real of it."""

    prunes_rows = False
    # A thousand queries, whose conditions are the same as without a cluster.
    test_every_filter_finds_what_it_names_newest_first = None

    @pytest.fixture
    def make_adapter(self, make_adapter):
        return lambda: make_adapter(cluster="one")


@pytest.mark.parametrize("tenant", ["t1", "org/acme"])
def test_a_tenant_s_shard_is_the_only_one_that_is_asked(make_adapter, server, tenant):
    # Both shards of this cluster are the same table, so a query that asks both counts twice.
    adapter = make_adapter(cluster="two")
    adapter.init()
    adapter.bulk_insert(tenant, [samples.encode("a", tenant_id=tenant)])
    of_tenant = "SELECT count() FROM default.audit_logs WHERE tenant_id = {tenant:String}"
    assert adapter._query(of_tenant, {"tenant": tenant_key(tenant)}) == [(1,)]
    assert adapter._query("SELECT count() FROM default.audit_logs", {}) == [(2,)]
    assert len(read(adapter, tenant)) == 1
    adapter.close()


def test_a_server_tells_whether_it_has_the_table(make_adapter, server):
    for name in ("misspelt", "default"):
        missing = make_adapter(database=name)
        assert not missing.exists()
        missing.close()
    made = make_adapter()
    made.init()
    assert made.exists()
    made.close()
    denied = make_adapter(password="wrong")
    with pytest.raises(AdapterUnavailableError):
        denied.exists()


def test_a_password_that_is_changed_meanwhile_is_an_outage_until_it_is_changed_back(
    make_adapter, server, tmp_path
):
    with AuditTrail(
        namespace="revoked",
        data_dir=tmp_path,
        mode="durable",
        adapter=make_adapter(),
        retry={"max_retries": 0, "scan_interval": 3600.0, "first_scan": 3600.0},
    ) as trail:
        logger = logger_of(trail)
        logger.info("before", extra={"tenant_id": "t"})
        assert trail.flush(60)
        server.let_in("another")
        logger.info("meanwhile", extra={"tenant_id": "t"})
        assert trail.flush(60)
        assert trail.stats()["dlq"]["pending_events"] == 1
        assert trail.stats()["dlq"]["dead"] == 0
        server.let_in(PASSWORD)
        for _ in range(100):
            trail.run_maintenance()
            if not trail.stats()["dlq"]["pending_events"]:
                break
        actions = [event.action for event in trail.iter(tenant_id="t")]
        assert actions == ["meanwhile", "before"]


def test_no_password_nor_query_is_in_the_message_of_an_outage(make_adapter, server):
    adapter = make_adapter(password="wrong-password")
    with pytest.raises(AdapterUnavailableError, match="AUTHENTICATION_FAILED") as caught:
        adapter.init()
    assert "wrong-password" not in str(caught.value)
    adapter = make_adapter()
    adapter.init()
    server.stop()
    try:
        with pytest.raises(AdapterUnavailableError, match="refused") as caught:
            read(adapter, "tenant-of-the-query")
    finally:
        server.start()
    assert "tenant-of-the-query" not in str(caught.value)
    assert str(server.port) in str(caught.value)
    adapter.close()


def test_parent_and_child_of_a_fork_both_go_on(make_adapter):
    adapter = make_adapter()
    adapter.init()
    parent = [samples.encode("parent", tenant_id="t") for _ in range(2)]
    adapter.bulk_insert("t", parent[:1])
    child = os.fork()
    if child == 0:
        try:
            adapter.after_fork()
            adapter.init()
            for number in range(20):
                adapter.bulk_insert("t", [samples.encode(f"child {number}", tenant_id="t")])
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    for _ in range(20):
        assert len(read(adapter, "t", action="parent")) == 1
    assert os.waitpid(child, 0)[1] == 0
    adapter.bulk_insert("t", parent[1:])
    assert read(adapter, "t", action="parent") == newest_first(parent)
    assert len(read(adapter, "t")) == 22
    adapter.close()


def test_small_inserts_may_be_collected_and_large_ones_are_recognised_when_they_come_again(
    make_adapter, server
):
    adapter = make_adapter()
    small, large = [b"a"], [b"b"] * 5000
    assert adapter._insert_settings(small)["async_insert"] == 1
    assert adapter._insert_settings(small)["wait_for_async_insert"] == 1
    assert adapter._insert_settings(large)["async_insert"] == 0
    tokens = {adapter._insert_settings(large)["insert_deduplication_token"] for _ in range(2)}
    assert len(tokens) == 1
    adapter = make_adapter(async_insert=False)
    adapter.init()
    event = [samples.encode("a")]
    for _ in range(3):
        adapter.bulk_insert(None, event)
        adapter.insert_encoded([(None, [*map(encode_event, event)])])
    assert server.run("SELECT count() FROM audit_logs").strip() == "1"
    adapter.close()


def test_settings_go_with_every_request(make_adapter):
    adapter = make_adapter(settings={"max_result_rows": 1, "result_overflow_mode": "throw"})
    with pytest.raises(Exception, match="TOO_MANY_ROWS"):
        adapter.init()  # the columns of the table are more than one
    adapter.close()


@pytest.fixture
def proxy(server):
    with proxy_before(server.port) as proxy:
        yield proxy


@pytest.fixture
def behind_proxy(proxy):
    options = {"username": USER, "password": PASSWORD, "timeout": 10}
    adapter = ClickHouseAdapter(host="127.0.0.1", port=proxy.port, **options)
    yield adapter
    proxy.answer = None
    adapter.close()


#: A proxy's own answers. Who follows the redirect is asked again, and finds no end.
OWN_ANSWERS = [
    (200, b"<html>We are down for maintenance</html>", {"Content-Type": "text/html"}),
    (200, b"", {}),
    (204, b"", {}),
    (302, b"", {"Location": "/login"}),
    (307, b"", {"Location": "/login"}),
    (502, b"bad gateway", {}),
]


@pytest.mark.parametrize("answer", OWN_ANSWERS, ids=lambda answer: f"{answer[0]}-{answer[1][:9]}")
def test_only_what_clickhouse_itself_answers_is_a_success(proxy, behind_proxy, answer):
    adapter, (before, event) = behind_proxy, (samples.encode("before"), samples.encode("a"))
    proxy.answer = answer
    with pytest.raises(AdapterUnavailableError):
        adapter.init()
    proxy.answer = None
    adapter.init()
    adapter.bulk_insert(None, [before])
    proxy.answer = answer
    for call in (
        lambda: adapter.bulk_insert(None, [event]),
        lambda: adapter.insert_encoded([(None, [encode_event(event)])]),
        lambda: read(adapter),
        lambda: adapter.prune(1),
        adapter.exists,
    ):
        with pytest.raises(AdapterUnavailableError):
            call()
    proxy.answer = None
    assert read(adapter) == [before]
    adapter.insert_encoded([(None, [encode_event(event)])])
    assert read(adapter) == [event, before]


def test_a_batch_that_a_proxy_finds_too_large_is_told_from_an_outage(proxy, behind_proxy):
    behind_proxy.init()
    proxy.largest = 100_000
    rng = random.Random(1)
    events = [samples.encode("a", metadata={"x": rng.randbytes(900).hex()}) for _ in range(200)]
    with pytest.raises(BatchTooLargeError, match="413"):
        behind_proxy.insert_encoded([(None, [*map(encode_event, events)])])
    with pytest.raises(BatchTooLargeError, match="413"):
        behind_proxy.bulk_insert(None, events)
    behind_proxy.insert_encoded([(None, [*map(encode_event, events[:20])])])
    assert read(behind_proxy) == newest_first(events[:20])
