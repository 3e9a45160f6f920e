"""Options: what is refused, with which words, and that types, table and engine agree."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from types import UnionType
from typing import Annotated, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest

import logbun_logging
from logbun_logging import AuditTrail, ConfigurationError
from logbun_logging._encoding.redaction import Redactor
from logbun_logging.adapters import Adapter
from logbun_logging.adapters.sqlite.adapter import SQLiteAdapter
from logbun_logging.options import (
    BatchingOptions,
    HandlerOptionsDict,
    TrailOptions,
    TrailOptionsDict,
    keywords,
    parse_options,
)
from logbun_logging.options.checks import check, is_group, kinds
from tests import docs_tables

BAD_OPTIONS = [
    ({"namespace": "a/b"}, "namespace='a/b'"),
    ({"namespace": None}, "namespace=None: namespace is required; allowed is 1 to 64"),
    ({"adapter": None}, "adapter=None"),
    ({"adapter": "nowhere"}, "adapter='nowhere'"),
    ({"adapter": "sqlite://host/path"}, "sqlite:///"),
    ({"adapter": {"type": "oracle"}}, "adapter.type='oracle'"),
    ({"adapter": {"type": "sqlite", "pth": "x"}}, "adapter.pth: .*did you mean 'adapter.path'"),
    ({"adapter": {"type": "sqlite"}}, "adapter.path is required; .*SQLiteAdapter"),
    ({"max_size": 10}, "max_size: .*did you mean 'batching.max_size'"),
    ({"days": 10}, "days: .*did you mean 'retention.days'"),
    ({"pool": {"idle_timeout": 10.0}}, "pool=.*absent unless tenancy.mode='database_per_tenant'"),
    (
        {"batching": {"max_size": 2000, "max_queue_size": 1000}},
        "batching.max_size=2000: allowed is at most batching.max_queue_size, which is 1,000",
    ),
    (
        {"mode": "durable", "wal": {"max_bytes": 5_000_000}},
        "wal.max_bytes=5000000: allowed is at least wal.segment_bytes, .* 8,388,608, or None",
    ),
    ({"mode": "durable", "wal": {"segment_bytes": None}}, "wal.segment_bytes=None"),
    (
        {"limits": {"max_payload_bytes": 200_000, "max_queued_bytes": 100_000}},
        "limits.max_payload_bytes=200000: allowed is at most limits.max_queued_bytes, .* 100,000",
    ),
    ({"batching": {"max_size": 1001}}, "batching.max_size=1001"),
    ({"batching": BatchingOptions(max_size=1001)}, "batching.max_size=1001"),
    ({"retention": {"cron": "0 3 * * *"}}, "retention.cron='0 3 .*with retention.days or"),
    (
        {"adapter": "sqlite:///a.db?busytimeout=1"},
        "adapter.busytimeout: .*'adapter.busy_timeout'",
    ),
    ({"adapter": {"type": "sqlite", "path": ":memory:"}}, "adapter.path=':memory:'"),
    ({"adapter": object()}, "bulk_insert"),
    ({"mode": "durble"}, "mode='durble'.*'volatile' or 'durable'"),
    ({"fsync": "sometimes"}, "fsync='sometimes'.*'always' or 'interval' or 'never'"),
    ({"mode": "volatile", "fsync": "always"}, "fsync='always'.*absent.*mode='durable'"),
    ({"fsync": "interval"}, "fsync='interval'.*absent with mode='volatile'"),
    ({"wal": {"segment_bytes": 4096}}, "wal=.*absent with mode='volatile'"),
    ({"data_dir": 5}, "data_dir=5"),
    ({"data_dir": ""}, "data_dir='': allowed is the path of a folder"),
    ({"data_dir": "a\0b"}, "data_dir=.*the path of a folder"),
    ({"data_dir": b"a"}, "data_dir=b'a'"),
    ({"data_dir": "~nobody-of-that-name/x"}, "data_dir='~nobody"),
    ({"adapter": {"type": "sqlite", "path": "a\0b"}}, "adapter.path="),
    (
        {"btching": {}},
        "btching: there is no such option, did you mean 'batching'.*; allowed is one of name",
    ),
    ({"colour": 1}, "colour: there is no such option; allowed is one of namespace"),
    ({"retry": {"max_retrys": 1}}, "retry.max_retrys: .*did you mean 'retry.max_retries'"),
    ({"batching": 5}, "batching=5"),
    ({"batching": {"max_size": 0}}, "batching.max_size=0.*from 1 to 10,000"),
    ({"batching": {"max_size": True}}, "batching.max_size=True"),
    ({"batching": {"size": 5}}, "batching.size.*max_size"),
    ({"batching": {"flush_interval": "5"}}, "batching.flush_interval='5'"),
    ({"batching": {"on_queue_full": "drop"}, "mode": "durable"}, "on_queue_full='drop'.*volatile"),
    ({"retry": {"max_retries": -1}}, "retry.max_retries=-1"),
    ({"retention": {"cron": "often"}}, "retention.cron='often'.*five-field"),
    ({"retention": {"days": 1.5}}, "retention.days=1.5"),
    ({"retention": {"tenants": {"t": 0}}}, r"retention.tenants\['t'\]=0"),
    ({"tenancy": {"mode": "per_planet"}}, "tenancy.mode='per_planet'"),
    ({"tenancy": {"mode": "database_per_tenant"}, "adapter": None}, "resolve_connection"),
    ({"redact": "password"}, "redact='password'"),
    ({"redact": ["tenant_id"]}, "redact='tenant_id'"),
    ({"redact": ["metadata..x"]}, "redact='metadata..x': allowed is .* without an empty part"),
    ({"batching": {"block_timeout": 2}}, "batching.block_timeout=2.*on_queue_full='block'"),
    ({"adapter": object()}, "this object has no init, bulk_insert, query, prune, close; allowed"),
    ({"adapter": SQLiteAdapter}, "this is a class: pass an object of it; allowed is"),
    ({"unknown_fields": "raise"}, "unknown_fields='raise'.*'warn' or 'refuse' or 'allow'"),
    ({"on_event": 5}, "on_event=5"),
    ({"require_tenant_id": "yes"}, "require_tenant_id='yes'"),
    ({"limits": {"max_string_bytes": 1}}, "limits.max_string_bytes=1"),
]


@pytest.mark.parametrize(
    "options",
    [
        {"batching": {"max_queue_size": 10}},
        {"batching": BatchingOptions(max_queue_size=10)},
        {"batching": {"on_queue_full": "block", "block_timeout": 2}},
        {"retention": {"days": None, "cron": "0 3 * * *"}},  # switched off, and said so
        {"retention": {"tenants": {"t": 1}, "cron": "0 3 * * *"}},
        {"adapter": None, "pool": {}, "tenancy": {"mode": "database_per_tenant",
                                                  "resolve_connection": str}},
    ],
)  # fmt: skip
def test_an_option_that_does_something_is_taken(tmp_path, options):
    parse_options({"namespace": "test", "adapter": "sqlite:///a.db", **options})


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=range(len(BAD_OPTIONS)))
def test_a_wrong_option_is_refused_at_set_up(tmp_path, options, message):
    given = {"namespace": "test", "adapter": f"sqlite:///{tmp_path}/a.db", **options}
    with pytest.raises(ConfigurationError, match=message):
        AuditTrail(**given)


def test_rules_are_added_to_those_that_redact_secrets_by_default():
    def redacted(**options):
        options = parse_options({"namespace": "n", "adapter": "sqlite:///a.db", **options})
        redactor = options.redact
        return [
            name
            for name in ("password", "ssn", "plan")
            if redactor is not None and redactor(("metadata", name))
        ]

    assert redacted() == redacted(redact=None) == ["password"]
    assert redacted(redact=["ssn"]) == ["password", "ssn"]
    assert redacted(redact=Redactor(["ssn"])) == ["ssn"]
    assert redacted(redact=[]) == []


def test_a_misspelt_option_is_refused_wherever_it_is_given(tmp_path):
    for make in (logbun_logging.AuditQueueHandler, logbun_logging.BatchingAuditHandler):
        with pytest.raises(ConfigurationError, match="did you mean 'namespace'"):
            make(nmespace="test", adapter=f"sqlite:///{tmp_path}/a.db")


# ── what users write and what the engine reads ──

DEFAULTS = msgspec.structs.astuple(TrailOptions(namespace="n", adapter="sqlite:///a.db"))

#: Options that the engine holds in another form than users write them.
OTHER_FORM = {"adapter", "data_dir", "redact", "tenancy.resolve_connection"}


def without_bounds(kind):
    """Return *kind* with ``Annotated`` taken off, wherever it stands."""
    if get_origin(kind) is Annotated:
        return get_args(kind)[0]
    arguments = tuple(map(without_bounds, get_args(kind)))
    form = Union if get_origin(kind) is UnionType else get_origin(kind)
    return kind if not arguments else (form, arguments)


def written(group):
    return get_type_hints(group, localns={"Adapter": Adapter})


def pairs():
    """Yield each option's name with the type that users see and the one that the engine reads."""
    users = written(TrailOptionsDict)
    for name, kind in kinds(TrailOptions).items():
        if not is_group(kind):
            yield name, users.pop(name), kind
            continue
        group = users.pop(name)
        assert group is getattr(keywords, f"{kind.__name__}Dict")
        inner = written(group)
        for one, inner_kind in kinds(kind).items():
            yield f"{name}.{one}", inner.pop(one), inner_kind
        assert inner == {}
    assert users == {}


def test_users_write_what_the_engine_reads():
    differing = {
        name for name, user, engine in pairs() if without_bounds(user) != without_bounds(engine)
    }
    assert differing == OTHER_FORM
    assert written(HandlerOptionsDict) == written(TrailOptionsDict)


def test_each_option_is_explained_with_its_default_and_its_bounds():
    ends = {name: text.rpartition("\n\n")[2] for name, text, _ in docs_tables.options()}
    assert ends == {name: end for name, _, end in docs_tables.options()}
    texts = docs_tables.documented()
    assert texts["TrailOptionsDict"] == texts["HandlerOptionsDict"]


def test_each_default_is_allowed():
    for group in (TrailOptions, *filter(is_group, map(type, DEFAULTS))):
        for field in msgspec.structs.fields(group):
            kind = kinds(group)[field.name]
            if field.default is not msgspec.NODEFAULT and not is_group(kind):
                check(field.name, field.default, kind)


# ── type checkers ──

GOOD = """
from typing import Any
from logbun_logging import AuditQueueHandler, AuditTrail, BatchingAuditHandler
from logbun_logging.adapters import SQLiteAdapter
from logbun_logging.options import TrailOptionsDict

async def of_tenant(tenant: str) -> str:
    return f"sqlite:///{tenant}.db"

def heard(name: str, details: Any) -> None: ...

settings: TrailOptionsDict = {"namespace": "n", "mode": "durable"}
loaded: dict[str, Any] = {}
AuditTrail(**settings)
AuditTrail(**loaded)
AuditTrail(namespace="n", adapter="sqlite:///a.db", fsync="always", retention={"days": None})
AuditTrail(namespace="n", adapter=SQLiteAdapter("a.db"), insert_timeout=3, on_event=heard)
AuditTrail(
    namespace="n",
    batching={"max_size": 1, "on_queue_full": "block"},
    tenancy={"mode": "database_per_tenant", "resolve_connection": of_tenant},
)
trail = AuditTrail(namespace="n", adapter={"type": "sqlite", "path": "a.db"}, redact=["ssn"])
AuditQueueHandler(namespace="n", adapter="sqlite:///a.db", data_dir="/var/lib/audit")
AuditQueueHandler(trail=trail)
BatchingAuditHandler(namespace="n", adapter="sqlite:///a.db", dlq={"max_files": 5})
"""

BAD = """
AuditTrail()
AuditTrail(adapter="sqlite:///a.db")
AuditTrail(namespace="n", adaptor="sqlite:///a.db")
AuditTrail(namespace="n", adapter=5)
AuditTrail(namespace="n", adapter=SQLiteAdapter)
AuditTrail(namespace="n", mode="durabel")
AuditTrail(namespace="n", batching={"max_sise": 1})
AuditTrail(namespace="n", batching={"max_size": "1"})
AuditTrail(namespace="n", batching={"on_queue_full": "explode"})
AuditTrail(namespace="n", retention={"tenants": {"t": "1"}})
AuditTrail(namespace="n", require_tenant_id="yes")
AuditTrail(namespace="n", on_event=5)
AuditQueueHandler(namespace="n", adaptor="sqlite:///a.db")
AuditQueueHandler(namespace="n", mode="durabel")
AuditQueueHandler(namespace="n", retry={"max_retrys": 1})
BatchingAuditHandler(namespace="n", fsync="sometimes")
"""


def run_mypy(path):
    command = ["mypy", "--strict", "--cache-dir", str(path.parent / "cache"), str(path)]
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=False
    )
    return {int(line) for line in re.findall(r"^[^:]+:(\d+): error", done.stdout, re.MULTILINE)}


def run_pyright(path):
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is missing: pip install -e '.[dev]'")
    command = ["pyright", "--pythonpath", sys.executable, "--outputjson", str(path)]
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=False
    )
    if not done.stdout.startswith("{"):
        pytest.skip(f"pyright cannot be started here: {done.stderr[-200:]}")
    found = json.loads(done.stdout)["generalDiagnostics"]
    return {one["range"]["start"]["line"] + 1 for one in found if one["severity"] == "error"}


@pytest.mark.parametrize("checker", [run_mypy, run_pyright])
def test_a_wrong_option_is_an_error_of_the_type_checker(tmp_path, checker):
    sample = tmp_path / "sample.py"
    sample.write_text(GOOD + BAD.lstrip())
    right = len(GOOD.splitlines())
    wrong = set(range(right + 1, right + 1 + len(BAD.lstrip().splitlines())))
    assert checker(sample) == wrong
