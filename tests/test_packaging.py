"""What the package promises to installers is what is tested."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

#: Extras whose packages are not tested at their lowest versions, and why.
NOT_TESTED = {
    "dev": "the tools of development",
    "dev-all": "the same",
    "docs": "tools as well",
    "turso": "pinned to one version",
    "chdb": "the engine is 500 MB",
    "cli": "the oldest typer uses what the newest click warns of",
    "celery": "its workers take minutes to start and end",
}


def lower_bounds(requirements):
    """Return the version after ``>=``, by the name of the package."""
    found = (re.match(r"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)", line) for line in requirements)
    return {match[1]: match[2] for match in found if match}


def test_the_lowest_versions_that_are_tested_are_those_that_are_promised():
    promised = lower_bounds(PROJECT["dependencies"])
    for extra, requirements in PROJECT["optional-dependencies"].items():
        if extra not in NOT_TESTED:
            promised |= lower_bounds(requirements)
    lines = (ROOT / "tests/lowest.txt").read_text().splitlines()
    assert dict(line.split("==") for line in lines if "==" in line) == promised


def test_every_dependency_has_a_lower_bound_or_is_pinned():
    unbounded = [line for line in PROJECT["dependencies"] if not re.search(r">=|==", line)]
    assert unbounded == []
