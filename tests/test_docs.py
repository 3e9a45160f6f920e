"""Every Python snippet of the documentation runs, in a process and a folder of its own."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from logbun_logging.stats import COUNTERS

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]


#: What the snippets of a page import.
NEEDED = {"docs/clickhouse.md": "chdb", "docs/turso.md": "libsql_client"}


def snippets(page):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


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


def test_every_counter_and_every_report_is_explained():
    text = (ROOT / "docs" / "operations.md").read_text()
    rows = [line.split(" |")[0] for line in text.splitlines() if line.startswith("| `")]
    explained = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    sources = [path.read_text() for path in (ROOT / "logbun_logging").rglob("*.py")]
    reported = {
        name
        for source in sources
        for call in re.findall(r"[_.]report\(([^,]*),", source)
        for name in re.findall(r'"(\w+)"', call)
    }
    assert len(reported) > 15
    assert reported | set(COUNTERS) <= explained
