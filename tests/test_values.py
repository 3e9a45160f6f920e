"""Every value has a defined form, whatever it is."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import pathlib
import time
import uuid
from collections import UserDict

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logbun_logging.encoding import EventEncoder
from logbun_logging.event import decode_event
from logbun_logging.options import LimitOptions
from logbun_logging.redaction import Redactor
from logbun_logging.stats import Counters
from logbun_logging.values import clean_tenant_id, clean_text, cut_text


class Colour(enum.Enum):
    RED = "red"


class Text(str):
    __slots__ = ()


class Whole(int):
    pass


class Hostile:
    def __str__(self):
        raise RuntimeError("no")

    __repr__ = __str__


@dataclasses.dataclass
class Point:
    x: int
    label: str


class Model:
    def model_dump(self):
        return {"name": "m"}


class Array:
    def tolist(self):
        return [1, 2]


def encode(metadata=None, limits=None, redact=None, context=None, counters=None, **fields):
    encoder = EventEncoder(
        limits or LimitOptions(), Redactor(redact) if redact else None, counters or Counters()
    )
    if metadata is not None:
        fields["metadata"] = metadata
    action = fields.pop("action", "a")
    entry = encoder.encode(action, fields, fields.pop("extra", None), context or {}, time.time())
    event = decode_event(entry.payload)
    assert entry.tenant_id == event.tenant_id
    return event


NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)
ID = uuid.UUID(int=7)


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (NOW, "2026-01-02T03:04:05.000006Z"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (ID, str(ID)),
        (decimal.Decimal("1.50"), "1.50"),
        (Colour.RED, "red"),
        (b"\xff", "/w=="),
        (Point(1, "p"), {"x": 1, "label": "p"}),
        (pathlib.PurePosixPath("/a/b"), "/a/b"),
        (ValueError("bad"), "ValueError: bad"),
        (Text("text"), "text"),
        (Whole(5), 5),
        (float("nan"), None),
        (float("inf"), None),
        (2**70, 2**70),
        (10**5000, hex(10**5000)),
        ("a\0b", "a\u2400b"),
        ("\ud800x", "\ufffdx"),
        ("\ud83d\ude00", "\U0001f600"),
        (Model(), {"name": "m"}),
        (Array(), [1, 2]),
        ((1, (2, "x")), [1, [2, "x"]]),
        ({None: 1, True: 2, (1, 2): 3}, {"null": 1, "true": 2, "(1, 2)": 3}),
        (Hostile(), "<unprintable Hostile>"),
        (range(2), [0, 1]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_that_json_cannot_hold_has_a_defined_form(value, form):
    assert encode({"v": value}, limits=LimitOptions(max_string_bytes=64_000)).metadata == {
        "v": form
    }


def test_a_set_becomes_an_array():
    assert sorted(encode({"v": {3, 1, 2}}).metadata["v"]) == [1, 2, 3]


def test_a_cycle_is_cut_where_it_closes():
    cyclic = {"name": "x"}
    cyclic["self"] = cyclic
    assert encode(cyclic).metadata == {"name": "x", "self": "[CIRCULAR]"}


def test_nesting_is_cut_at_a_depth():
    deep = current = {}
    for _ in range(2000):
        current["d"] = {}
        current = current["d"]
    text = str(encode(deep).metadata)
    assert "[TOO DEEP]" in text or text.count("{") == 2001


def test_keys_that_become_equal_are_all_kept():
    assert set(encode({"v": {"1": "a", 1: "b", None: "c"}}).metadata["v"].values()) == {
        "a",
        "b",
        "c",
    }


@pytest.mark.parametrize("given_value", [[1], "text", 5, Point(1, "p")])
def test_what_is_no_object_is_wrapped(given_value):
    event = encode(new_values=given_value)
    assert isinstance(event.new_values, dict)
    assert event.new_values in ({"value": given_value}, {"x": 1, "label": "p"})


def test_ids_that_are_no_strings_become_text():
    event = encode(actor_id=42, entity_id=0, tenant_id=ID, request_id=Colour.RED)
    assert (event.actor_id, event.entity_id, event.tenant_id) == ("42", "0", str(ID))


class Role(str, enum.Enum):  # noqa: UP042 - StrEnum's str() is its value, this one's is not
    ADMIN = "admin"


class Loud(str):
    __slots__ = ()

    def __str__(self):
        return self.upper()


@pytest.mark.parametrize("elsewhere", [None, {"nul": "\0"}], ids=["fast path", "slow path"])
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Colour.RED, "red"),
        (Role.ADMIN, "admin"),
        (Loud("quiet"), "quiet"),
        (7, "7"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ],
)
@pytest.mark.parametrize("field", ["actor_id", "tenant_id", "outcome"])
def test_a_field_of_text_takes_what_a_value_stands_for(field, value, text, elsewhere):
    event = encode(elsewhere, **{field: value})
    assert getattr(event, field) == text
    assert encode(action=value).action == text


class Liar:
    @property
    def __class__(self):
        raise RuntimeError("no")


def test_an_object_that_lies_about_its_class_is_described():
    assert "Liar" in encode(action=Liar(), outcome=Liar(), metadata={"a": Liar()}).action


@pytest.mark.parametrize("more", [{}, {"metadata": {"x": object()}}])
@pytest.mark.parametrize("given", [{}, {"tenant_id": ""}])
def test_an_empty_tenant_of_the_context_is_none(given, more):
    assert encode(context={"tenant_id": ""}, **given, **more).tenant_id is None


def test_an_empty_tenant_or_actor_is_none():
    event = encode(tenant_id="", actor_id="")
    assert (event.tenant_id, event.actor_id) == (None, "unknown")


def test_an_actor_that_nobody_names_is_counted():
    counters = Counters()
    encode(counters=counters)
    assert counters["unknown_actor"] == 1


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
        json_values,
        max_size=4,
    )
)
@settings(max_examples=200, deadline=None)
def test_plain_json_comes_back_as_it_went_in_on_either_path(value):
    # A NUL elsewhere sends the whole event the slow way.
    assert encode(value).metadata == encode(value, action="x\0").metadata == value


hostile_values = st.recursive(
    st.none()
    | st.floats()
    | st.text()
    | st.binary(max_size=8)
    | st.dates()
    | st.uuids()
    | st.builds(Hostile)
    | st.builds(object)
    | st.integers(min_value=-(2**80), max_value=2**80),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.none() | st.integers() | st.text() | st.binary(max_size=3), inner)
    ),
    max_leaves=10,
)


@given(hostile_values, hostile_values, hostile_values)
@settings(max_examples=300, deadline=None)
def test_no_value_whatever_keeps_an_event_from_being_encoded(action, entity, metadata):
    event = encode(metadata, action=action, entity_id=entity)
    msgspec.json.encode(event)
    assert "\0" not in event.action


@given(st.text(min_size=1), st.integers(min_value=64, max_value=400))
def test_a_cut_text_fits_and_is_marked(text, limit):
    text = clean_text(text) * 20
    cut = cut_text(text, limit)
    assert len(cut.encode()) <= limit
    assert cut == text or (cut.endswith("bytes]") and text.startswith(cut.split("…[+")[0]))


def test_a_long_string_is_cut_marked_and_counted():
    counters = Counters()
    event = encode({"v": "é" * 5000}, counters=counters)
    assert len(event.metadata["v"].encode()) <= 2048
    assert event.metadata["v"].endswith("bytes]")
    assert counters["cut"] == 1


def test_a_large_event_keeps_a_marked_preview():
    counters = Counters()
    large = {f"k{number}": "x" * 1000 for number in range(200)}
    event = encode(new_values=large, metadata={"plan": "pro"}, counters=counters)
    assert len(msgspec.json.encode(event)) <= 64_000
    assert event.new_values["_truncated"] is True
    assert event.new_values["_bytes"] > 200_000
    assert event.metadata == {"plan": "pro"}
    assert counters["cut"] == 1


def test_too_many_items_are_counted_in_a_mark():
    event = encode({"v": list(range(20_000))}, limits=LimitOptions(max_payload_bytes=16_000_000))
    assert event.metadata["v"][-1] == "[+10000 items]"


def test_tenants_that_have_to_be_cleaned_stay_distinct():
    ids = ["a\0b", "a\u2400b", "x" * 3000, "x" * 3001, "A", "a", "\ud800", "\ufffd"]
    cleaned = {clean_tenant_id(tenant, 2048) for tenant in ids}
    assert len(cleaned) == len(ids)
    assert all(len(tenant.encode()) <= 2048 for tenant in cleaned)


def test_redaction_replaces_whole_names_at_any_depth():
    secret = {"password": "p", "tokenizer": "t", "list": [{"Password": "q"}], "token": 1}
    event = encode(secret, redact=["password", "token"], new_values={"a": {"token": "x"}})
    assert event.metadata == {
        "password": "[REDACTED]",
        "tokenizer": "t",
        "list": [{"Password": "[REDACTED]"}],
        "token": "[REDACTED]",
    }
    assert event.new_values == {"a": {"token": "[REDACTED]"}}
    assert secret["password"] == "p"


def test_redaction_by_path_leaves_the_same_name_elsewhere():
    event = encode({"card": {"number": "4111"}, "number": 1}, redact=["metadata.card.number"])
    assert event.metadata == {"card": {"number": "[REDACTED]"}, "number": 1}


def test_fields_themselves_can_be_redacted():
    event = encode({"a": 1}, redact=["ip_address", "metadata"], ip_address="203.0.113.9")
    assert (event.ip_address, event.metadata) == ("[REDACTED]", {"value": "[REDACTED]"})


@pytest.mark.parametrize(
    ("rule", "key"),
    [
        ("password", "pa\u017fsword"),  # a long s
        ("token", "to\u212aen"),  # the Kelvin sign
        ("strasse", "Stra\u00dfe"),
        ("strasse", "STRA\u1e9eE"),
        ("office", "o\ufb03ce"),
        ("stra\u00dfe", "STRASSE"),
        ("caf\u00e9", "CAF\u00c9"),
        ("pass\0word", "pass\0word"),
        ("pass\u2400word", "pass\0word"),
        ("pass\ud800word", "Pass\ud800word"),
        ("pass\ud83d\ude00", "pass\U0001f600"),
        ("a\tb", "A\tB"),
        ('a"b', 'A"B'),
        ('pass"x', 'pa\u017fs"x'),
        ("pass\\x", "pa\u017fs\\x"),
        ("a\\b", "A\\B"),
        ("7", 7),
    ],
)
@pytest.mark.parametrize("prefix", ["", "metadata.", "metadata.*."])
def test_redaction_looks_at_the_key_alone(rule, key, prefix):
    inner = {key: "secret"}
    given = {"a": inner} if "*" in prefix else inner
    for others in ({}, {"z": "\0"}, {"z": object()}, {"z": rule}, {rule: "x"}):
        event = encode({**given, **others}, redact=[prefix + rule])
        assert "secret" not in str(event), others


class Node(msgspec.Struct):
    password: str = "secret"
    parent: object = None


def cyclic_struct():
    node = Node()
    node.parent = node
    return node


@dataclasses.dataclass
class Login:
    salt: dataclasses.InitVar[str]
    password: str = "secret"

    def __post_init__(self, salt):
        pass


class BrokenModel:
    def model_dump(self):
        raise ValueError("secret")

    def __str__(self):
        return "password='secret'"


class Changing(UserDict):
    def __iter__(self):
        raise RuntimeError("dictionary changed size during iteration")


@pytest.mark.parametrize(
    "value", [cyclic_struct(), Login("s"), BrokenModel(), Changing(password="secret")]
)
def test_redaction_leaves_no_text_of_what_cannot_be_read(value):
    unreadable = f"[UNREADABLE {type(value).__name__}]"
    for held in (value, [value], {"b": value}):
        event = encode({"a": held}, redact=["password"])
        assert "secret" not in str(event)
        assert unreadable in str(event)


class Opaque:
    def __str__(self):
        return "opaque"


def test_redaction_leaves_the_text_of_what_has_nothing_to_read():
    given = {"a": pathlib.Path("x"), "b": ID, "c": Opaque()}
    event = encode(given, redact=["password"])
    assert event.metadata == {"a": "x", "b": str(ID), "c": "opaque"}


class Switching:
    """Whose text is asked for while another thread changes the mapping that it is in."""

    def __init__(self, holder):
        self.holder = holder

    def __str__(self):
        self.holder[f"k{len(self.holder)}"] = 1
        return "switched"


@pytest.mark.parametrize("redact", [None, ["password"]])
def test_a_mapping_that_changes_meanwhile_is_read_as_it_was(redact):
    given = {}
    given.update(a=Switching(given), b=Switching(given), password="x")
    event = encode({"v": given}, redact=redact)
    expected = {"a": "switched", "b": "switched", "password": "[REDACTED]" if redact else "x"}
    assert event.metadata["v"].items() >= expected.items()


def test_redaction_of_the_metadata_takes_all_that_joins_it():
    encoder = EventEncoder(LimitOptions(), Redactor(["metadata"]), Counters())
    for fields in ({}, {"metadata": {"b": "secret"}}):
        entry = encoder.encode("a", fields, {"x": "secret"}, {}, time.time())
        assert b"secret" not in entry.payload


def test_a_key_that_only_looks_like_a_redacted_one_stays():
    given = {"tok\u00e9n": 1, "\u212a": "token", "x": '\u212a":', "\u00df": "token"}
    assert encode(given, redact=["token"]).metadata == given


def test_redaction_is_by_the_name_as_it_was_given():
    given = {"a\u2400": 1, "a\0": 2, "p" * 3000: 3, "P" * 3001: 4, "z": 0}
    event = encode(given, redact=["a\0", "p" * 3000])
    assert sorted(map(str, event.metadata.values())) == ["0", "4"] + ["[REDACTED]"] * 3


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"nul",
        b'"a',
        b'"\xff"',
        b'1,"evil":2',
        b'1},"tenant_id":"evil","x":{"a":1',
        b'{"a":1}\n{"b":2}',
        b"[" * 100_000,
    ],
)
def test_raw_json_that_is_malformed_is_never_written(data):
    for field in ("metadata", "old_values", "new_values"):
        event = encode(**{field: {"v": msgspec.Raw(data), "w": 1}, "tenant_id": "t1"})
        assert getattr(event, field) == {"v": "[MALFORMED JSON]", "w": 1}
        assert event.tenant_id == "t1"


class Wrapped(msgspec.Struct):
    raw: msgspec.Raw
    password: str = "secret"


@dataclasses.dataclass
class Held:
    raw: msgspec.Raw


@pytest.mark.parametrize(
    "wrap",
    [
        lambda raw: raw,
        lambda raw: {"a": raw},
        lambda raw: [raw],
        lambda raw: ({"a": [raw]},),
        lambda raw: UserDict(a=raw),
        Wrapped,
        Held,
        lambda raw: [Wrapped(raw)],
    ],
)
def test_raw_json_is_read_wherever_it_is(wrap):
    raw = msgspec.Raw(b'{"p\\u0061ssword" : "secret", "plan": "pro\\u0000"}')
    text = msgspec.json.encode(encode({"v": wrap(raw)}, redact=["password"])).decode()
    assert "secret" not in text
    assert "[REDACTED]" in text
    assert '"plan":"pro\u2400"' in text


def test_raw_json_whose_keys_are_plain_is_redacted_as_well():
    raw = msgspec.Raw(b'{"password":"secret","plan":[1,{"a":null}]}')
    assert encode({"v": raw}).metadata == {"v": {"password": "secret", "plan": [1, {"a": None}]}}
    event = encode({"v": raw}, redact=["metadata.v.password"])
    assert event.metadata == {"v": {"password": "[REDACTED]", "plan": [1, {"a": None}]}}


def test_context_supplies_what_the_call_does_not():
    context = {"tenant_id": "t1", "ip_address": "203.0.113.9", "actor_id": "c"}
    event = encode(context=context, actor_id="given")
    assert (event.tenant_id, event.ip_address, event.actor_id) == ("t1", "203.0.113.9", "given")
    assert encode(context=context, action="x\0").actor_id == "c"


def test_unknown_names_join_the_metadata():
    event = encode({"plan": "pro"}, extra={"colour": "red"})
    assert event.metadata == {"plan": "pro", "colour": "red"}
