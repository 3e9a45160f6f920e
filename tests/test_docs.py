"""Every Python snippet of the documentation runs, in a process and a folder of its own."""

from __future__ import annotations

import importlib.util
import logging
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from string import Formatter

import msgspec
import pytest

import logbun_logging
from logbun_logging._engine.report_kinds import REPORTS
from logbun_logging._process.counters import COUNTERS
from logbun_logging.adapters import SQLiteAdapter
from logbun_logging.adapters.sql import time_text
from logbun_logging.testing import samples
from tests import docs_tables
from tests.console import commands, shell, write_files

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    *sorted(page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md")),
]


#: What the snippets of a page import.
NEEDED = {"docs/reference/clickhouse.md": "chdb", "docs/reference/turso.md": "libsql_client"}


def snippets(page):
    return re.findall(
        r"^```python[^\n]*\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE
    )


def run(program, folder):
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, f"{program}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES)
def test_the_snippets_of_a_page_run(page, tmp_path):
    if page in NEEDED and importlib.util.find_spec(NEEDED[page]) is None:
        pytest.skip(f"{NEEDED[page]} is missing: pip install -e '.[dev-all]'")
    found = snippets(page)
    # The README's snippets follow on each other; other pages' stand alone.
    programs = ["\n".join(found)] if page == "README.md" else found
    for number, program in enumerate(programs):
        folder = tmp_path / str(number)
        folder.mkdir()
        run(program, folder)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_what_is_tried_first_may_be_tried_again(page, tmp_path):
    program = "\n".join(snippets(page))
    for _ in range(2):
        run(program, tmp_path)


@pytest.mark.slow
def test_the_tutorial_prints_what_it_shows(tmp_path):
    for module in ("typer", "fastapi", "uvicorn"):
        pytest.importorskip(module, reason=f"{module} is missing: pip install -e '.[dev]'")
    text = (ROOT / "docs" / "tutorial.md").read_text()
    write_files(text, tmp_path)
    with shell(tmp_path) as run_command:
        for command, printed in commands(text):
            if not command.startswith("pip install"):
                run_command(command, printed)


def test_the_quickstart_shows_what_it_did(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "quickstart.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "accepted          5,000, in the database 5,000" in done.stdout


def test_the_sql_of_the_page_finds_what_it_says_and_uses_the_indexes(tmp_path):
    text = (ROOT / "docs" / "how-to" / "sql.md").read_text()
    statements = re.findall(r"^```sql\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    changes = [statement for statement in statements if statement.startswith("CREATE INDEX")]
    queries = [statement for statement in statements if statement not in changes]
    assert (len(queries), len(changes)) == (10, 1)
    adapter = SQLiteAdapter(tmp_path / "audit.db")
    adapter.init()
    values = {"entity_id": "7", "new_values": {"title": "b"}, "old_values": {"title": "a"}}
    values |= {"metadata": {"http.route": "/"}, "outcome": "denied"}
    now = datetime.now(UTC)
    moments = [datetime(2026, 1, 31, 12, tzinfo=UTC), now - timedelta(minutes=59), now]
    for tenant in ("t1", None):
        events = [samples.encode("a", tenant_id=tenant, **values) for _ in moments]
        dated = [
            msgspec.structs.replace(event, created_at=time_text(moment))
            for event, moment in zip(events, moments, strict=True)
        ]
        adapter.bulk_insert(tenant, dated)
    with closing(sqlite3.connect(adapter.path)) as database:
        for statement in changes:
            database.execute(statement)
    adapter.close()
    with closing(sqlite3.connect(f"file:{adapter.path}?mode=ro", uri=True)) as database:
        for query in queries:
            assert database.execute(query).fetchall(), query
            plan = database.execute(f"EXPLAIN QUERY PLAN {query.partition('PLAN')[2] or query}")
            steps = [row[3] for row in plan]
            assert any("USING" in step for step in steps), (query, steps)
            assert not any(re.match("SCAN (a|audit_logs)$", step) for step in steps), (query, steps)
            assert "ORDER BY" not in query or not any("B-TREE" in step for step in steps), query
        for query, found in zip(queries[:3], (1, 2, 3), strict=True):
            listed = query.replace("count(*)", "id")
            assert len(database.execute(listed).fetchall()) == found, query


def test_the_tables_of_the_pages_are_those_of_the_source():
    pages = docs_tables.pages()
    assert pages
    for page in pages:
        assert docs_tables.updated(page.read_text()) == page.read_text(), (
            f"{page.name}: run python -m tests.docs_tables"
        )


def test_every_counter_and_every_report_is_explained():
    text = (ROOT / "docs" / "reference" / "reports.md").read_text()
    rows = [line.split(" |")[0] for line in text.splitlines() if line.startswith("| `")]
    explained = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    sources = [path.read_text() for path in (ROOT / "logbun_logging").rglob("*.py")]
    reported = {
        name
        for source in sources
        for call in re.findall(r"[_.]report\(([^,)]*)[,)]", source)
        for name in re.findall(r'"(\w+)"', call)
    }
    assert len(reported) > 15
    assert reported | set(COUNTERS) <= explained
    assert reported <= set(REPORTS), "each kind has a sentence in report_kinds"


def test_the_table_of_reports_is_that_of_the_source():
    text = (ROOT / "docs" / "reference" / "reports.md").read_text()
    table = text[text.index("| `on_event`, logger |") :].split("\n\n")[0]
    documented = {}
    for line in table.splitlines()[2:]:
        names, levels, details = line.split(" | ")[:3]
        for name in re.findall(r"`(\w+)`", names):
            assert levels.upper() == logging.getLevelName(REPORTS[name].level), name
            fields = {field for _, field, _, _ in Formatter().parse("".join(REPORTS[name][1:]))}
            assert fields - {None} <= set(re.findall(r"`(\w+)`", details)), name
            documented[name] = levels
    assert documented.keys() == REPORTS.keys()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site; return its folder."""
    pytest.importorskip("material", reason="mkdocs is missing: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_loads_nothing_from_other_hosts(site):
    loading = r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//[^>]*>"""
    loading += r"""|<link\b(?![^>]*rel="canonical")[^>]*\bhref=["']?(?:https?:)?//[^>]*>"""
    for page in site.rglob("*.html"):
        assert not re.findall(loading, page.read_text()), page
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", sheet.read_text()), sheet


def test_the_reference_names_every_public_name_and_no_private_module(site):
    pages = {page: page.read_text() for page in site.rglob("*.html")}
    assert not [page for page, text in pages.items() if "logbun_logging._" in text]
    anchors = {
        name
        for text in pages.values()
        for name in re.findall(r' id="logbun_logging\.([\w.]+)"', text)
    }
    documented = {name.rpartition(".")[2] for name in anchors}
    assert set(logbun_logging.__all__) <= documented
