"""The contract finds what it is there to find: adapters with one fault each do not pass it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.contract import faulty

pytest_plugins = ["pytester"]


def test_every_fault_is_found_by_the_test_that_is_there_for_it(pytester):
    pytester.makepyfile(test_faulty=Path(faulty.__file__).read_text())
    tests = [f"test_faulty.py::{name}::{test}" for name, test in faulty.FAULTS.items()]
    options = ("-p", "no:cacheprovider", "-q", "-rf", "--tb=no")
    result = pytester.runpytest_subprocess(*options, *tests)
    failed = {
        match.groups()
        for line in result.outlines
        if (match := re.match(r"FAILED test_faulty\.py::(\w+)::(\w+)", line))
    }
    assert failed == set(faulty.FAULTS.items())
    assert len(failed) > 25


@pytest.mark.parametrize("name", ["AdapterContract", "ServerContract"])
def test_a_contract_without_an_adapter_says_what_is_missing(pytester, name):
    pytester.makepyfile(
        f"""
        from logbun_logging.testing import {name}

        class TestNothing({name}):
            pass
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-k", "opens_twice")
    assert result.parseoutcomes()["errors"] == 1
    result.stdout.fnmatch_lines(["*TestNothing must override the make_adapter fixture"])
