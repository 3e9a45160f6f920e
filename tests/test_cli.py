"""The command line, as people and programs use it."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from logbun_logging import ALL_TENANTS, AuditEvent, AuditLogger, __version__
from logbun_logging._encoding.values import clean_tenant_id
from logbun_logging._storage.dlq import DeadLetterQueue
from logbun_logging._storage.namespace import Namespace
from logbun_logging.adapters.sqlite.adapter import SQLiteAdapter
from logbun_logging.cli import app
from logbun_logging.event import encode_event, new_event_id, utc_now
from logbun_logging.options import DlqOptions
from logbun_logging.query import Pagination, make_filters
from tests.fakes import MemoryAdapter

SCRIPT = Path(sys.executable).with_name("logbun")


def run(*arguments, status=0, **options):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], **options)
    assert result.exit_code == status, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/audit.db"


def store(tmp_path, *events):
    adapter = SQLiteAdapter(tmp_path / "audit.db")
    adapter.init()
    adapter.bulk_insert(None, events)
    adapter.close()


def event(number=0, moment=None, **fields):
    fields = {"tenant_id": "t1", "action": "course.created", "actor_id": "u", **fields}
    moment = moment or f"2026-01-01T00:00:{number % 60:02d}.000000Z"
    return AuditEvent(new_event_id(), moment, entity_id=str(number), **fields)


@pytest.fixture
def filled(tmp_path):
    events = [event(number, action=f"{'ab'[number % 2]}.x") for number in range(20)]
    events += [event(20, tenant_id="t2"), event(21, tenant_id=None, metadata={"n": [1]})]
    store(tmp_path, *events)
    return events


def test_a_query_writes_one_object_a_line(filled, url):
    out = run("query", url, "-t", "t1", "-a", "a.*", "-n", 3, "-f", "ndjson").stdout
    found = [msgspec.json.decode(line, type=AuditEvent) for line in out.splitlines()]
    assert found == [filled[18], filled[16], filled[14]]


def test_a_query_writes_json_and_csv_with_every_field(filled, url):
    found = json.loads(run("query", url, "--all-tenants", "-n", 0, "-f", "json").stdout)
    assert [row["id"] for row in found] == [e.id for e in reversed(filled)]
    out = run("query", url, "-f", "csv").stdout
    (row,) = csv.DictReader(io.StringIO(out))
    assert (row["id"], row["metadata"], row["tenant_id"]) == (filled[21].id, '{"n":[1]}', "")


def test_a_table_has_the_columns_that_are_filled_and_names_the_next_page(filled, url):
    result = run("query", url, "-t", "t1", "-n", 15)
    assert "created_at" in result.stdout
    assert "outcome" not in result.stdout
    assert result.stdout.count("2026-01-01T") == 15
    cursor = result.stderr.split("--cursor ")[1].strip()
    rest = run("query", url, "-t", "t1", "--cursor", cursor, "-f", "ndjson").stdout
    assert [json.loads(line)["id"] for line in rest.splitlines()] == [
        e.id for e in reversed(filled[:5])
    ]


@pytest.mark.parametrize(("width", "left_out"), [(80, "entity_type, entity_id"), (200, "")])
def test_times_are_whole_in_a_terminal_of_any_width(filled, tmp_path, url, width, left_out):
    store(tmp_path, event(30, entity_type="course", actor_id="somebody@example.com"))
    env = {"COLUMNS": str(width), "FORCE_COLOR": "1", "TERM": "xterm"}
    result = run("query", url, "-t", "t1", env=env)
    assert result.stdout.count("000000Z ") == 21
    assert result.stderr == (
        f"the terminal is too narrow for {left_out}: see --format\n" * bool(left_out)
    )


def test_all_pages_are_read_for_a_limit_of_none(tmp_path, url):
    store(tmp_path, *(event(number) for number in range(2100)))
    for limit, count in ((0, 2100), (1500, 1500)):
        out = run("query", url, "-t", "t1", "-n", limit, "-f", "ndjson").stdout
        assert len({json.loads(line)["id"] for line in out.splitlines()}) == count


def test_times_may_be_spans(tmp_path, url):
    store(tmp_path, event(1, moment=utc_now()), event(2))
    ids = run("query", url, "-t", "t1", "--since", "1h", "-f", "ndjson").stdout
    assert [json.loads(line)["entity_id"] for line in ids.splitlines()] == ["1"]
    ids = run("query", url, "-t", "t1", "--until", "2026-01-02", "-f", "ndjson").stdout
    assert [json.loads(line)["entity_id"] for line in ids.splitlines()] == ["2"]


def test_a_terminal_gets_no_orders_from_an_event(tmp_path, url):
    store(tmp_path, event(1, action="\x1b[2J[bold]x", actor_id="a\nb"))
    for command in (("query",), ("tail", "--no-follow")):
        out = run(*command, url, "-t", "t1").stdout
        assert "\\x1b[2J[bold]x" in out
        assert "a\\nb" in out


#: What an event may carry to mislead a terminal, a program that reads lines, or a spreadsheet.
CONTROLS = {
    "\x1b]0;owned\x07": r"\x1b]0;owned\x07",
    "a\nb\r\nc": r"a\nb\r\nc",
    "\x9b2J": r"\x9b2J",
    "\u202egnp.exe": r"\u202egnp.exe",
    "\u2028\u2029\x85": r"\u2028\u2029\x85",
    "\x7f\x1c": r"\x7f\x1c",
    "\t=1": r"'\t=1",
    "\r=1": r"'\r=1",
}
FORMULAS = [
    '=HYPERLINK("http://evil.example","x")',
    "+cmd|' /C calc'!A0",
    "-1+1",
    "@SUM(A1)",
    "\uff1d1",
]
HARMLESS = ['quoted "and", separated', "a=1", "Jos\xe9\xa0\u0645 \U0001f468\u200d\U0001f469", ""]
CELLS = {**CONTROLS, **{text: "'" + text for text in FORMULAS}, **{text: text for text in HARMLESS}}
FORBIDDEN = {*map(chr, (*range(32), *range(127, 160), 0x2028, 0x2029, 0x202E))}


@pytest.fixture
def hostile(tmp_path):
    """Events with hostile texts, newest first, in a database and in a dead letter."""
    events = [
        event(number, user_agent=text, old_values={text: text}) for number, text in enumerate(CELLS)
    ][::-1]
    store(tmp_path, *events)
    queue = DeadLetterQueue(tmp_path / "app" / "dlq", DlqOptions())
    name = queue.put("t1", [encode_event(found) for found in events], "\x9b2J")
    commands = (
        ("query", f"sqlite:///{tmp_path}/audit.db", "-t", "t1"),
        ("dlq", "show", tmp_path / "app", name),
    )
    return [msgspec.structs.asdict(found) for found in events], commands


@pytest.mark.parametrize("form", ["json", "ndjson"])
def test_json_is_the_same_without_control_characters_and_with_every_field(hostile, form):
    rows, commands = hostile
    for command in commands:
        out = run(*command, "-f", form).stdout
        assert set(out) & FORBIDDEN == {"\n"}
        lines = [out] if form == "json" else out.splitlines()
        found = [json.loads(line) for line in lines]
        assert (found[0] if form == "json" else found) == rows


def test_json_of_other_commands_has_no_control_characters(hostile, tmp_path, url):
    rows, _ = hostile
    out = run("dlq", "list", tmp_path / "app", "--json").stdout
    assert set(out) & FORBIDDEN == {"\n"}
    assert json.loads(out)[0]["envelope"]["reason"] == "\x9b2J"
    out = run("tail", url, "-t", "t1", "--no-follow", "-n", 50, "-f", "ndjson").stdout
    assert set(out) & FORBIDDEN == {"\n"}
    assert [json.loads(line) for line in out.splitlines()] == rows[::-1]


def test_csv_is_safe_for_spreadsheets_and_terminals(hostile):
    rows, commands = hostile
    for command in commands:
        out = run(*command, "-f", "csv").stdout
        assert set(out) & FORBIDDEN == {"\n"}
        assert len(out.splitlines()) == len(rows) + 1
        found = [*csv.DictReader(io.StringIO(out))]
        assert [row["user_agent"] for row in found] == [CELLS[row["user_agent"]] for row in rows]
        assert [json.loads(row["old_values"]) for row in found] == [r["old_values"] for r in rows]


def test_raw_csv_has_the_texts_as_they_are(hostile):
    rows, commands = hostile
    for command in commands:
        out = run(*command, "-f", "csv", "--raw").stdout_bytes.decode()
        found = csv.DictReader(io.StringIO(out, newline=""))
        assert [row["user_agent"] for row in found] == [row["user_agent"] for row in rows]


def test_nothing_found_is_said(filled, url):
    assert "no events" in run("query", url, "-t", "nobody").stderr
    assert run("query", url, "-t", "nobody", "-f", "json").stdout.split() == ["[]"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["query", "nowhere"], 2, "URL='nowhere'"),
        (["query", "sqlite:///{}/missing.db"], 1, "there is no such database"),
        (["query", "sqlite:///{}/text.db"], 1, "not a database"),
        (
            ["query", "sqlite:///{}/audit.db", "--since", "yesterday"],
            2,
            "--since='yesterday': allowed is a time in ISO 8601, ",
        ),
        (
            ["query", "sqlite:///{}/audit.db", "--until", "2026-13-01"],
            2,
            "--until='2026-13-01': allowed",
        ),
        (["query", "sqlite:///{}/audit.db", "--action", "*.created"], 2, "one '*' at its end"),
        (["query", "sqlite:///{}/audit.db", "--since", "999999999w"], 2, "--since"),
        (["query", "sqlite:///{}/audit.db", "--cursor", "x"], 2, "cursor='x'"),
        (["query", "sqlite:///{}/audit.db", "-t", "t", "--all-tenants"], 2, "one of them"),
        (["query", "sqlite:///{}/audit.db", "-n", "-1"], 2, "--limit"),
        (["query", "sqlite:///{}/audit.db", "-t", "a", "--tenant", "b"], 2, "give it once"),
        (["tail", "sqlite:///{}/audit.db", "--actor", "a", "--actor", "b"], 2, "give it once"),
        (["query"], 2, "LOGBUN_URL"),
        (["dlq", "retry", "{}/ns", "--all"], 2, "LOGBUN_URL"),
        (["prune", "sqlite:///{}/audit.db"], 2, "--days"),
        (["prune", "sqlite:///{}/audit.db", "--days", "1"], 2, "give --yes"),
        (["query", "sqlite:///{}/audit.db", "--raw"], 2, "--format csv"),
        (["wal", "{}/ns", "--format", "csv"], 2, "--format='csv'"),
        (["prune", "sqlite:///{}/audit.db", "-t", "t1"], 2, "TENANT=DAYS"),
        (["prune", "sqlite:///{}/audit.db", "-t", "t1=0"], 2, "TENANT=DAYS"),
        (["stats", "{}"], 2, "namespace's folder"),
        (["wal", "{}/missing"], 2, "namespace's folder"),
        (["dlq", "show", "{}/ns", "x"], 1, "no dead letter x"),
        (["dlq", "requeue", "{}/ns"], 2, "--all"),
        (["dlq", "requeue", "{}/ns", "x", "--all"], 2, "--all"),
        (["dlq", "retry", "{}/ns", "sqlite:///{}/missing.db", "--all"], 1, "there is no such"),
        (["dlq", "delete", "{}/ns", "x", "-y"], 1, "no dead letter x"),
    ],
)
def test_mistakes_are_answered_with_a_line(tmp_path, filled, arguments, status, message):
    (tmp_path / "text.db").write_text("this is not what is asked for" * 100)
    (tmp_path / "ns" / "dlq").mkdir(parents=True)
    result = run(*(text.replace("{}", str(tmp_path)) for text in arguments), status=status)
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_the_url_may_come_from_the_environment(filled, url):
    out = run("query", "-t", "t2", "-f", "ndjson", env={"LOGBUN_URL": url}).stdout
    assert json.loads(out)["entity_id"] == "20"


def test_pruning_counts_first(tmp_path, filled, url):
    old = run("prune", url, "--days", 1, "--tenant", "t2=36500", "--dry-run").stdout
    assert [line.split()[-1] for line in old.splitlines() if line.strip()][-2:] == ["0", "21"]
    run("prune", url, "--days", 1, "--tenant", "t2=36500", "--yes")
    left = run("query", url, "--all-tenants", "-f", "ndjson").stdout
    assert [json.loads(line)["tenant_id"] for line in left.splitlines()] == ["t2"]


def answer(text, *arguments):
    """Run the program in a terminal where somebody types *text*."""
    typed, terminal = pty.openpty()
    try:
        os.write(typed, text.encode())
        command = [SCRIPT, *map(str, arguments)]
        return subprocess.run(
            command, stdin=terminal, capture_output=True, text=True, check=False, timeout=60
        )
    finally:
        os.close(terminal)
        os.close(typed)


def test_pruning_asks_with_the_counts(filled, url):
    pruning = ("prune", url, "--days", 1, "--tenant", "t2=36500")
    count = ("query", url, "--all-tenants", "-n", 0, "-f", "ndjson")
    done = answer("n\n", *pruning)
    assert "Remove 21 events for good? [y/N]" in done.stderr
    assert done.returncode == 1
    # Nobody is there to be asked.
    assert "give --yes" in run(*pruning, status=2).stderr
    assert run(*count).stdout.count("\n") == 22
    done = answer("y\n", *pruning)
    assert (done.returncode, done.stdout.split()[-1]) == (0, "21")
    assert run(*count).stdout.count("\n") == 1


def test_more_events_than_a_page_has_are_shown_while_following(tmp_path, url):
    now = utc_now()
    store(tmp_path, event(moment=now))
    command = [SCRIPT, "tail", url, "-t", "t1", "-n", "1", "--interval", "0.05", "-f", "ndjson"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        process.stdout.readline()
        events = [event(number, moment=now) for number in range(12_000)]
        store(tmp_path, *events)
        found = []
        while events[-1].id not in found[-1:]:
            found.append(json.loads(process.stdout.readline())["id"])
        process.send_signal(signal.SIGINT)
        assert not process.stdout.read()
    assert found == [stored.id for stored in events]


def test_days_for_a_tenant_hold_however_long_its_id_is(tmp_path, url):
    tenant = "a" * 3000
    store(tmp_path, event(1, tenant_id=clean_tenant_id(tenant)), event(2, tenant_id="t2"))
    run("prune", url, "--days", 1, "--tenant", f"{tenant}=36500", "--yes")
    left = run("query", url, "--all-tenants", "-f", "ndjson").stdout
    assert [json.loads(line)["entity_id"] for line in left.splitlines()] == ["1"]


def test_following_shows_each_event_once_as_it_arrives(tmp_path, url):
    store(tmp_path, *(event(n, moment=utc_now()) for n in range(3)))
    command = [SCRIPT, "tail", url, "-t", "t1", "-n", "2", "--interval", "0.05", "-f", "ndjson"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "COLUMNS": "80"}
    )
    try:
        first = [json.loads(process.stdout.readline())["entity_id"] for _ in range(2)]
        store(tmp_path, event(3, moment=utc_now()), event(4, tenant_id="t2", moment=utc_now()))
        second = json.loads(process.stdout.readline())["entity_id"]
        store(tmp_path, event(5, moment=utc_now()))
        third = json.loads(process.stdout.readline())["entity_id"]
    finally:
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=30)
    assert (first, second, third, rest) == (["1", "2"], "3", "5", b"")
    assert process.returncode == 130
    assert b"Traceback" not in err


@pytest.mark.parametrize(
    "command", [("query",), ("tail", "--no-follow"), ("prune", "--days", 1, "-y")]
)
def test_a_misspelt_database_is_not_made(tmp_path, command):
    if importlib.util.find_spec("chdb") is None:
        pytest.skip("chdb is missing: pip install -e '.[dev-all]'")
    for url in (f"chdb://{tmp_path}/typo", f"sqlite:///{tmp_path}/typo.db"):
        assert "no such database" in run(*command, url, status=1).stderr
    assert not [*tmp_path.iterdir()]


# ── the folder of a namespace ──


@pytest.fixture
def letters(tmp_path):
    """A DLQ with a pending file of two events and a dead one of one event."""
    folder = tmp_path / "data" / "app"
    with Namespace(folder, "single_database", f"sqlite:{tmp_path}/audit.db").held():
        pass
    queue = DeadLetterQueue(folder / "dlq", DlqOptions())
    pending = queue.put("t1", [encode_event(event(1)), encode_event(event(2))], "down")
    name = queue.put("t2", [encode_event(event(3, tenant_id="t2"))], "refused")
    claim = queue.claim(name, "pending")
    claim.fail(claim.envelope(), lambda _: True, dead=True)
    return folder, pending, name


def test_dead_letters_are_listed_and_shown(letters):
    folder, pending, dead = letters
    out = run("dlq", "list", folder).stdout
    assert [
        line.split()[:4] for line in out.splitlines() if "refused" in line or "down" in line
    ] == [
        [pending, "pending", "t1", "2"],
        [dead, "dead", "t2", "1"],
    ]
    found = json.loads(run("dlq", "list", folder, "--state", "dead", "--json").stdout)
    assert [(file["name"], file["envelope"]["reason"]) for file in found] == [(dead, "refused")]
    out = run("dlq", "show", folder, pending, "-f", "ndjson").stdout
    assert [json.loads(line)["entity_id"] for line in out.splitlines()] == ["1", "2"]
    assert "no dead letters" in run("dlq", "list", folder, "-s", "processing").stderr


def test_a_damaged_envelope_is_listed(letters):
    folder, pending, _ = letters
    (folder / "dlq" / f"{pending}.batch").write_bytes(b"garbage\n")
    assert "damaged" in run("dlq", "list", folder).stdout


def test_dead_letters_are_requeued(letters):
    folder, pending, dead = letters
    assert "not dead" in run("dlq", "requeue", folder, pending, status=1).stderr
    assert "made pending: 1 file" in run("dlq", "requeue", folder, "--all").stderr
    found = json.loads(run("dlq", "list", folder, "--json").stdout)
    assert {file["name"]: file["state"] for file in found} == {pending: "pending", dead: "pending"}


def test_dead_letters_are_deleted_after_a_question(letters):
    folder, pending, dead = letters
    assert answer("n\n", "dlq", "delete", folder, pending).returncode == 1
    assert "give --yes" in run("dlq", "delete", folder, pending, input="y\n", status=2).stderr
    assert len(json.loads(run("dlq", "list", folder, "--json").stdout)) == 2
    done = answer("y\n", "dlq", "delete", folder, pending, dead)
    assert "Remove 2 files with 3 events for good?" in done.stderr
    assert done.stderr.endswith("removed: 2 files\n")
    assert json.loads(run("dlq", "list", folder, "--json").stdout) == []


def test_dead_letters_are_inserted_now(tmp_path, letters, url):
    folder, _, dead = letters
    store(tmp_path)
    assert "inserted: 2 events" in run("dlq", "retry", folder, url, "--all").stderr
    assert "inserted: 1 event" in run("dlq", "retry", folder, url, dead).stderr
    out = run("query", url, "--all-tenants", "-f", "ndjson").stdout
    assert sorted(json.loads(line)["entity_id"] for line in out.splitlines()) == ["1", "2", "3"]
    assert "no dead letters" in run("dlq", "list", folder).stderr


def test_a_dead_letter_may_be_named_as_its_file_is(letters):
    folder, pending, dead = letters
    for name in (pending, f"{pending}.batch", f"{dead}.batch.dead"):
        assert run("dlq", "show", folder, name, "-f", "ndjson").stdout
    assert "made pending: 1 file" in run("dlq", "requeue", folder, f"{dead}.batch.dead").stderr
    run("dlq", "delete", folder, f"{dead}.batch", f"{pending}.batch", "-y")
    assert "no dead letters" in run("dlq", "list", folder).stderr


@pytest.fixture
def tenants(tmp_path):
    """A namespace with a database for each tenant, of which a dead process has left events."""
    code = (
        "import os, logging\n"
        "from logbun_logging import AuditTrail\n"
        "trail = AuditTrail(namespace='app', mode='durable', data_dir='data', tenancy={'mode':"
        " 'database_per_tenant', 'resolve_connection': lambda tenant: f'sqlite:///{tenant}.db'})\n"
        "logging.getLogger().addHandler(trail.handler)\n"
        "for tenant in ('t1', 't2'):\n"
        "    logging.warning('first', extra={'tenant_id': tenant})\n"
        "trail.flush()\n"
        "for tenant in ('t1', 't2'):\n"
        "    logging.warning('left', extra={'tenant_id': tenant})\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    queue = DeadLetterQueue(tmp_path / "data" / "app" / "dlq", DlqOptions())
    for tenant in ("t1", "t2", "t3"):
        queue.put(tenant, [encode_event(event(1, tenant_id=tenant, action="letter"))], "down")
    return tmp_path / "data" / "app"


def letters_of(folder, tenant):
    found = json.loads(run("dlq", "list", folder, "--json").stdout)
    return [file for file in found if file["envelope"]["tenant_id"] == tenant]


def test_a_tenant_s_database_gets_no_other_tenant_s_events(tmp_path, tenants):
    url = f"sqlite:///{tmp_path}/t1.db"
    assert "--tenant" in run("dlq", "retry", tenants, url, "--all", status=2).stderr
    assert "'t9'" in run("dlq", "retry", tenants, url, "--all", "-t", "t9", status=2).stderr
    (other,) = letters_of(tenants, "t2")
    for tenant in ((), ("-t", "t1")):
        assert run("dlq", "retry", tenants, url, other["name"], *tenant, status=2).stderr
    assert "inserted: 1 event" in run("dlq", "retry", tenants, url, "--all", "-t", "t1").stderr
    out = run("query", url, "--all-tenants", "-f", "ndjson").stdout
    stored = [json.loads(line) for line in out.splitlines()]
    assert {row["tenant_id"] for row in stored} == {"t1"}
    assert sorted(row["action"] for row in stored) == ["first", "left", "letter"]
    # What was others' is theirs still, and nobody holds the attempt against them.
    assert not letters_of(tenants, "t1")
    assert [file["envelope"]["attempts"] for file in letters_of(tenants, "t2")] == [0, 0]
    assert letters_of(tenants, "t3")[0]["envelope"]["attempts"] == 0
    assert not (tmp_path / "t3.db").exists()


def test_dead_letters_of_several_tenants_are_not_mixed_where_nothing_says_that_they_may(
    tmp_path, letters, url
):
    folder = letters[0]
    (folder / "namespace.json").unlink()
    store(tmp_path)
    refused = run("dlq", "retry", folder, url, "--all", status=2).stderr
    assert "nothing in the folder says whether these tenants share a database" in refused
    assert "2 events" in run("dlq", "retry", folder, url, "--all", "-t", "t1").stderr
    out = run("query", url, "--all-tenants", "-f", "ndjson").stdout
    assert {json.loads(line)["tenant_id"] for line in out.splitlines()} == {"t1"}


def test_a_tenant_that_never_had_a_database_may_be_given_one(tmp_path, tenants):
    store(tmp_path)
    assert (
        "inserted: 1 event"
        in run(
            "dlq", "retry", tenants, f"sqlite:///{tmp_path}/audit.db", "--all", "-t", "t3"
        ).stderr
    )
    assert not letters_of(tenants, "t3")


def test_a_tenant_s_dead_letters_alone_are_inserted(tmp_path, letters, url):
    folder, pending, dead = letters
    run("dlq", "requeue", folder, dead)
    store(tmp_path)
    assert "inserted: 1 event" in run("dlq", "retry", folder, url, "--all", "-t", "t2").stderr
    found = json.loads(run("dlq", "list", folder, "--json").stdout)
    assert [file["name"] for file in found] == [pending]


@pytest.fixture
def tenantless(letters):
    """A file whose event the service has refused, because it names no tenant."""
    queue = DeadLetterQueue(letters[0] / "dlq", DlqOptions())
    rows = [encode_event(event(9, tenant_id=None))]
    return queue.put(None, rows, "refused: no tenant", tenant_required=True)


def test_what_was_refused_for_its_missing_tenant_is_not_inserted(
    tmp_path, letters, url, tenantless
):
    store(tmp_path)
    assert "tenant_id=TENANT" in run("dlq", "retry", letters[0], url, tenantless, status=2).stderr
    assert "inserted: 2 events" in run("dlq", "retry", letters[0], url, "--all").stderr
    out = run("query", url, "--all-tenants", "-f", "ndjson").stdout
    assert sorted(json.loads(line)["entity_id"] for line in out.splitlines()) == ["1", "2"]
    assert tenantless in run("dlq", "list", letters[0]).stdout


def test_a_missing_tenant_may_be_given(tmp_path, letters, url, tenantless):
    store(tmp_path)
    folder, pending, _ = letters
    for wrong in ("tenant_id=", "actor_id=x", "x"):
        run("dlq", "retry", folder, url, tenantless, "--set", wrong, status=2)
    assert run("dlq", "retry", folder, url, "--all", "--set", "tenant_id=t9", status=2).stderr
    assert run("dlq", "retry", folder, url, pending, "--set", "tenant_id=t9", status=1).stderr
    given = run("dlq", "retry", folder, url, tenantless, "--set", "tenant_id=t9").stderr
    assert "inserted: 1 event" in given
    out = run("query", url, "--tenant", "t9", "-f", "ndjson").stdout
    assert [json.loads(line)["entity_id"] for line in out.splitlines()] == ["9"]
    assert tenantless not in run("dlq", "list", folder).stdout


def test_a_mixed_file_is_shown_and_inserted(tmp_path, letters, url):
    folder, pending, _ = letters
    store(tmp_path)
    queue = DeadLetterQueue(folder / "dlq", DlqOptions())
    rows = [encode_event(event(n, tenant_id=tenant)) for n, tenant in enumerate(("t1", "t2"), 7)]
    name = queue.put(None, rows, "spilled", mixed=True)
    assert "(several)" in run("dlq", "list", folder).stdout
    shown = run("dlq", "show", folder, name, "-f", "ndjson").stdout
    assert [json.loads(line)["tenant_id"] for line in shown.splitlines()] == ["t1", "t2"]
    assert "inserted: 2 events" in run("dlq", "retry", folder, url, "--all", "-t", "t1").stderr
    assert "inserted: 2 events" in run("dlq", "retry", folder, url, name).stderr
    assert pending not in run("dlq", "list", folder).stdout


def test_a_tenant_s_database_gets_its_part_of_a_mixed_file(tmp_path, tenants):
    queue = DeadLetterQueue(tenants / "dlq", DlqOptions())
    rows = [
        encode_event(event(n, tenant_id=tenant, action="mixed"))
        for n, tenant in enumerate(("t1", "t2", "t1"), 20)
    ]
    name = queue.put(None, rows, "spilled", mixed=True)
    url = f"sqlite:///{tmp_path}/t1.db"
    assert "inserted: 2 events" in run("dlq", "retry", tenants, url, name, "-t", "t1").stderr
    assert [event.tenant_id for event in queue.show(name)] == ["t2"]
    assert queue.list()[-1].envelope.attempts == 0
    assert run("dlq", "retry", tenants, url, name, "-t", "t1", status=2).stderr


def test_a_file_that_a_service_works_on_is_left_to_it(tmp_path, letters, url):
    folder, pending, _ = letters
    store(tmp_path)
    claim = DeadLetterQueue(folder / "dlq", DlqOptions()).claim(pending, "pending")
    assert "retried just now" in run("dlq", "delete", folder, pending, "-y", status=1).stderr
    assert "left: 1 file, e.g. " in run("dlq", "retry", folder, url, pending, status=1).stderr
    claim.put_back()
    run("dlq", "delete", folder, pending, "-y")


def test_a_live_service_s_log_is_shown_and_stays_its_own(tmp_path, make_trail, make_logger):
    adapter = MemoryAdapter()
    adapter.gate.clear()
    trail = make_trail(adapter=adapter, mode="durable")
    audit = AuditLogger(make_logger(trail.handler))
    for number in range(3):
        audit.fire("a", tenant_id="t1", entity_id=str(number))
    folder = tmp_path / "data" / "test"
    (found,) = json.loads(run("wal", folder, "-f", "json").stdout)
    assert (found["alive"], found["segment"], found["events"]) == (True, "current.aof", 3)
    assert " yes " in run("wal", folder).stdout
    out = run("wal", folder, "--events", "-f", "ndjson").stdout
    assert [json.loads(line)["entity_id"] for line in out.splitlines()] == ["0", "1", "2"]
    figures = json.loads(run("stats", folder, "--json").stdout)
    assert (figures["wal_processes"], figures["wal_abandoned"]) == (1, 0)
    assert figures["wal_segments"] == 1
    assert figures["wal_bytes"] == sum(path.stat().st_size for path in folder.rglob("*.aof"))
    adapter.gate.set()
    audit.fire("a", tenant_id="t1", entity_id="3")
    assert trail.flush(20)
    trail.shutdown()
    assert len(adapter.events) == 4
    assert "nothing waits" in run("wal", folder).stderr


def test_a_dead_process_s_log_is_told_from_a_live_one_s(tmp_path, url):
    code = (
        "import os, logging\n"
        "from logbun_logging import AuditTrail\n"
        "trail = AuditTrail(namespace='app', mode='durable', data_dir='data',"
        " adapter='sqlite:///none/audit.db')\n"
        "logging.getLogger().addHandler(trail.handler)\n"
        "logging.warning('left', extra={'tenant_id': 't1'})\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    folder = tmp_path / "data" / "app"
    with next(folder.rglob("current.aof")).open("ab") as file:
        file.write(b"torn")
    (found,) = json.loads(run("wal", folder, "-f", "json").stdout)
    assert (found["alive"], found["events"], found["damaged"]) == (False, 1, 1)
    assert "wal_abandoned" in run("stats", folder).stdout
    # Whoever retries brings that in as well.
    queue = DeadLetterQueue(folder / "dlq", DlqOptions())
    queue.put("t1", [encode_event(event(1))], "down")
    store(tmp_path)
    refused = run("dlq", "retry", folder, url, "--all", status=2)
    assert "events wait in" in refused.stderr
    (folder / "namespace.json").unlink()  # as the message says
    run("dlq", "retry", folder, url, "--all")
    adapter = SQLiteAdapter(tmp_path / "audit.db")
    found = adapter.query(ALL_TENANTS, make_filters(), Pagination(limit=10))
    adapter.close()
    assert sorted(e.action for e in found) == ["course.created", "left"]
    figures = json.loads(run("stats", folder, "--json").stdout)
    assert (figures["wal_segments"], figures["corrupt_files"]) == (0, 1)


@pytest.mark.parametrize("options", [(), ("--events",)])
def test_what_is_no_file_of_the_wal_is_neither_read_nor_waited_for(tmp_path, options):
    wal = tmp_path / "app" / "wal"
    (wal / "dead").mkdir(parents=True)
    os.mkfifo(wal / "dead" / "seg-000001.aof")
    (wal / "dead" / "seg-000002.aof").symlink_to("/dev/zero")
    (wal / "elsewhere").symlink_to("/")
    assert run("wal", tmp_path / "app", *options).stdout == ""


# ── the program ──


@pytest.mark.parametrize("program", [[SCRIPT], [sys.executable, "-m", "logbun_logging"]])
def test_the_program_runs(tmp_path, filled, url, program):
    done = subprocess.run(
        [*program, "query", url, "-t", "t2", "-f", "ndjson"], capture_output=True, check=True
    )
    assert json.loads(done.stdout)["entity_id"] == "20"
    done = subprocess.run([*program, "query", "x"], capture_output=True, check=False)
    assert done.returncode == 2


def test_the_program_names_its_version():
    assert run("--version").stdout == f"logbun {__version__}\n"


def test_who_reads_only_the_first_lines_is_no_error(tmp_path, url):
    store(tmp_path, *(event(number) for number in range(3000)))
    done = subprocess.run(
        f"'{SCRIPT}' query '{url}' -t t1 -n 0 -f ndjson | head -n 1",
        shell=True,
        capture_output=True,
        check=True,
    )
    assert done.stdout.count(b"\n") == 1
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_the_program_says_what_it_needs(missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from logbun_logging.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert done.returncode == 1
    assert "install the extra 'cli' of logbun-logging" in done.stderr
    assert "Traceback" not in done.stderr
