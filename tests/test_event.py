"""The table of event fields, and what spells the same names out for type checkers."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import get_type_hints

import msgspec
import pytest

from logbun_logging import logger, query
from logbun_logging.event import (
    CALL_FIELDS,
    CONTEXT_FIELDS,
    FIELD_NAMES,
    FIELDS,
    FILTER_FIELDS,
    OBJECT_FIELDS,
    AuditContextFields,
    AuditEvent,
    AuditFields,
    FieldFilters,
    utc_timestamp,
)
from logbun_logging.query import QueryFilters

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "events.md"

SOURCES = {
    "library": "the library",
    "message": "the log message",
    "call": "the call",
    "context": "the call, else the context",
}


def filter_of(field):
    """Return how the documentation says that a query asks for *field*."""
    return {
        "none": "",
        "exact": f"`{field.name}=`",
        "prefix": f'`{field.name}=`, also a prefix: `"course.*"`',
        "range": "`start_date=`, `end_date=`",
        "scope": f"`{field.name}=`: whose events",
    }[field.filter]


def calls(name):
    """Return the signatures of a method of AuditLogger that type checkers see."""
    tree = ast.parse(inspect.getsource(logger.AuditLogger))
    for found in ast.walk(tree):
        if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef) and found.name == name:
            yield found.args


def test_the_struct_has_the_fields_of_the_table_in_its_order():
    assert AuditEvent.__struct_fields__ == FIELD_NAMES
    for field, member in zip(FIELDS, msgspec.structs.fields(AuditEvent), strict=True):
        assert (field.kind == "object") == ("dict" in str(member.type)), field.name


def test_the_struct_explains_every_field():
    explained = inspect.getdoc(AuditEvent).partition("Attributes:")[2]
    assert tuple(line.split(":")[0].strip() for line in explained.split("\n")[1:]) == FIELD_NAMES


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        (AuditContextFields, CONTEXT_FIELDS),
        (AuditFields, CALL_FIELDS),
        (FieldFilters, set(FILTER_FIELDS)),
        (QueryFilters, set(query._FILTERS)),
    ],
)
def test_a_typed_dictionary_names_the_fields_of_the_table(typed, names):
    assert get_type_hints(typed).keys() == names


def test_a_call_names_every_field_with_the_type_of_the_typed_dictionary():
    typed = {name: hint.__forward_arg__ for name, hint in AuditFields.__annotations__.items()}
    signatures = [arguments for arguments in calls("fire") if arguments.kwonlyargs]
    assert signatures
    for arguments in signatures:
        found = {
            argument.arg: ast.unparse(argument.annotation) for argument in arguments.kwonlyargs
        }
        assert found == typed


def test_the_page_of_events_has_the_table():
    rows = [
        f"| `{field.name}` | {field.meaning} | {SOURCES[field.source]} | {filter_of(field)} |"
        for field in FIELDS
    ]
    head = ["| field | what it holds | from | in a query |", "|---|---|---|---|"]
    assert "\n".join([*head, *rows]) in PAGE.read_text()


def test_a_field_is_an_object_or_can_be_asked_for():
    assert set(OBJECT_FIELDS).isdisjoint(FILTER_FIELDS)
    assert all(field.meaning for field in FIELDS)


def test_times_are_text_that_sorts():
    moments = [0.0, 1.5, 1e9, 1e9 + 0.000001, 1.7e9, 2e9]
    texts = [utc_timestamp(moment) for moment in moments]
    assert texts == sorted(texts)
    assert len({len(text) for text in texts}) == 1
    with pytest.raises(ValueError, match="9999"):
        utc_timestamp(1e20)
