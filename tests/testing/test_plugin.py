"""The plug-in as pytest loads it, in suites of applications."""

from __future__ import annotations

import os
import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

if not any(point.value == "_logbun_logging_pytest" for point in entry_points(group="pytest11")):
    pytest.skip(
        "the installed metadata is old: pip install -e . again, for the plug-in's entry point",
        allow_module_level=True,
    )

APPLICATION = """
import logging
import logging.config

def configure():
    logging.config.dictConfig({
        "version": 1,
        "handlers": {"audit": {
            "class": "logbun_logging.AuditQueueHandler",
            "namespace": "app",
            "mode": "durable",
            "adapter": "sqlite:///never/made.db",
        }},
        "loggers": {"audit": {"level": "INFO", "handlers": ["audit"], "propagate": False}},
    })

def create_course(actor):
    logging.getLogger("audit").info(
        "course.created", extra={"actor_id": actor, "tenant_id": "t1"}
    )
"""


@pytest.fixture
def suite(pytester):
    pytester.makepyfile(application=APPLICATION)
    pytester.makeini("[pytest]\nfilterwarnings = error\n")

    def run(tests, *arguments):
        pytester.makepyfile(test_application=tests)
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments)

    return run


def test_an_application_s_tests_check_its_audit_trail(suite, pytester):
    result = suite(
        """
        import application

        application.configure()

        def test_it_is_logged(audit_log):
            application.create_course("u1")
            audit_log.assert_logged("course.created", actor_id="u1", times=1)

        def test_each_test_starts_with_nothing(audit_log):
            assert audit_log.events == []

        def test_it_may_be_configured_again(audit_log):
            application.configure()
            application.create_course("u2")
            audit_log.assert_logged("course.created", actor_id="u2", times=1)
        """
    )
    result.assert_outcomes(passed=3)
    assert not (pytester.path / ".logbun").exists()
    assert not (pytester.path / "never").exists()


def test_a_failure_points_at_the_test_and_reads_well(suite):
    result = suite(
        """
        import application

        application.configure()

        def test_it_is_logged(audit_log):
            application.create_course("u1")
            audit_log.assert_logged("course.created", actor_id="u2")
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            '>       audit_log.assert_logged("course.created", actor_id="u2")',
            "E       AssertionError: no event matches 'course.created', actor_id='u2'",
            "E       nearest is event 1 of 1, 'course.created':",
            "E         actor_id  expected 'u2', was 'u1'",
            "E       logged:",
            "E         1. 'course.created'  tenant_id='t1'  actor_id='u1'",
        ]
    )
    assert "audit_log.py:" not in result.stdout.str()


def test_nothing_is_imported_before_a_test_wants_it(suite):
    result = suite(
        """
        import sys

        def test_it_is_not_there_yet():
            assert "_logbun_logging_pytest" in sys.modules
            assert not [name for name in sys.modules if name.startswith("logbun_logging")]

        def test_now_it_is(audit_log):
            assert "logbun_logging.testing.capture" in sys.modules
            assert "logbun_logging.testing.contract" not in sys.modules
        """
    )
    result.assert_outcomes(passed=2)


def test_coverage_sees_every_line_of_the_package(suite, monkeypatch):
    # Of a coverage run that we may be in: the inner one would begin by erasing its data.
    for name in [name for name in os.environ if name.startswith(("COVERAGE_", "COV_CORE_"))]:
        monkeypatch.delenv(name)
    result = suite(
        """
        def test_it_is_logged(audit_log):
            audit_log.attach()
        """,
        "--cov=logbun_logging.errors",
        "--cov-report=term",
        "--cov-config=/dev/null",
    )
    result.assert_outcomes(passed=1)
    # Its module-level lines alone are more than this; imported before, it would have none.
    (line,) = [line for line in result.outlines if line.rstrip().endswith("%") and "errors" in line]
    assert int(line.split()[-1].rstrip("%")) > 25


def test_a_contract_is_written_in_a_few_lines_and_explains_its_failures(suite):
    result = suite(
        """
        import pytest
        from logbun_logging.testing import AdapterContract, MemoryAdapter

        class Forgetful(MemoryAdapter):
            def bulk_insert_many(self, batches):
                return super().bulk_insert_many([(t, events[1:]) for t, events in batches])

        class TestForgetful(AdapterContract):
            @pytest.fixture
            def make_adapter(self):
                adapter = Forgetful()
                return lambda: adapter
        """,
        "-k",
        "opens_twice",
    )
    assert result.parseoutcomes()["failed"] == 1
    result.stdout.fnmatch_lines(["E       *assert [[][]] == [[]AuditEvent(*"])


@pytest.mark.parametrize(
    ("page", "arguments", "passed"),
    [("testing", (), 3), ("custom-adapters", ("-k", "twice or bounds or hostile"), 5)],
)
def test_the_tests_that_the_documentation_writes_pass(suite, pytester, page, arguments, passed):
    text = (Path(__file__).parents[2] / "docs" / "how-to" / f"{page}.md").read_text()
    snippets = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    tests = [snippet for snippet in snippets if "def test_" in snippet or "Contract" in snippet]
    assert tests
    for number, snippet in enumerate(tests[1:]):
        pytester.makepyfile(**{f"test_more_{number}": snippet})
    outcomes = suite(tests[0], *arguments).parseoutcomes()
    assert outcomes["passed"] == passed
    assert outcomes.keys() <= {"passed", "deselected"}
