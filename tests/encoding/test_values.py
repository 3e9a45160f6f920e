"""Every value has a defined form, whatever it is."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import pathlib
import sqlite3
import time
import unicodedata
import uuid
from collections import UserDict
from typing import NamedTuple

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logbun_logging._encoding import redaction
from logbun_logging._encoding.encoder import EventEncoder
from logbun_logging._encoding.redaction import Redactor
from logbun_logging._encoding.values import Normalizer, clean_tenant_id, clean_text, cut_text
from logbun_logging._process.counters import Counters
from logbun_logging.event import decode_event
from logbun_logging.options import LimitOptions, parse_options


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


@pytest.mark.parametrize(("depth", "cut"), [(31, False), (32, True), (2000, True)])
def test_nesting_is_cut_at_a_depth(depth, cut):
    deep = current = {}
    for _ in range(depth):
        current["d"] = {}
        current = current["d"]
    counters = Counters()
    for others in ({}, {"nul": "\0"}):
        text = str(encode({**deep, **others}, counters=counters).metadata)
        assert ("[TOO DEEP]" in text) is cut
        assert text.count("{") == (32 if cut else depth + 1)
    assert counters["cut"] == (2 if cut else 0)


def test_lists_are_cut_at_the_same_depth():
    deep = []
    for _ in range(915):
        deep = [deep]
    text = str(encode({"v": deep}).metadata)
    assert text.count("[") == 32
    assert "[TOO DEEP]" in text


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


def aliases(depth):
    """Return a list that stands for 10 ** depth numbers and holds ten."""
    value = [1] * 10
    for _ in range(depth - 1):
        value = [value] * 10
    return value


@pytest.mark.parametrize(
    "make",
    [
        lambda: list(range(100_000)),
        lambda: {f"k{n}": n for n in range(100_000)},
        lambda: [{f"k{n}": n for n in range(500)}] * 1000,
        lambda: [10**3999] * 10_000,
        lambda: ["\u00e9" * 10_000] * 100_000,
        lambda: [b"x" * 10_000] * 100_000,
        lambda: aliases(9),
        lambda: {"a": {"b": (aliases(9), Point(1, aliases(9)))}},
        lambda: msgspec.Raw(b"[" + b"1," * 500_000 + b"1]"),
        lambda: {"k" * 2100 + f"{n:05}": n for n in range(10_000)},
    ],
    ids=range(10),
)
def test_what_has_no_end_is_left_out_and_marked_and_little_of_it_is_looked_at(make, monkeypatch):
    looked_at = []
    original = Normalizer.value

    def value(self, *arguments):
        looked_at.append(1)
        return original(self, *arguments)

    monkeypatch.setattr(Normalizer, "value", value)
    counters = Counters()
    event = encode({"plan": "pro"}, new_values={"v": make(), "a": 1}, counters=counters)
    assert len(looked_at) < 20_000
    assert "items]" in str(event) or "bytes]" in str(event) or "_truncated" in event.new_values
    assert event.metadata == {"plan": "pro"}
    assert counters["cut"] == 1


def test_names_that_are_cut_to_the_same_one_are_all_kept():
    given = {"k" * 3000 + str(n): n for n in range(60)}
    event = encode({"v": given}, limits=LimitOptions(max_payload_bytes=1_000_000))
    assert sorted(event.metadata["v"].values()) == list(range(60))
    assert {name.rpartition("]")[2] for name in event.metadata["v"]} >= {"", "_2", "_10"}
    taken = {"7": "a", 7: "b", "7_2": "c", True: "d", "true": "e"}
    assert encode({"v": taken}).metadata["v"] == {
        "7": "a",
        "7_2": "b",
        "7_2_2": "c",
        "true": "d",
        "true_2": "e",
    }


def test_each_object_of_an_event_has_its_share():
    large = [{"n": n} for n in range(100_000)]
    event = encode(large, old_values={"v": large}, new_values={"title": "x"}, extra={"plan": "pro"})
    assert event.new_values == {"title": "x"}
    assert event.old_values["v"][:2] == [{"n": 0}, {"n": 1}]
    assert event.metadata["plan"] == "pro"


def test_the_text_of_a_container_is_its_start():
    event = encode(actor_id=aliases(9), entity_id={"a": [1]}, outcome=[aliases(9)] * 9, action=[1])
    assert (event.entity_id, event.action) == ("{'a': [1]}", "[1]")
    assert len(event.actor_id.encode()) <= 2048


def test_the_stored_form_of_a_tenant_id_is_nobody_elses_id():
    victim = "acme\0"
    stored = encode(tenant_id=victim).tenant_id
    assert stored == clean_tenant_id(victim) != victim
    for others in ({}, {"nul": "\0"}):
        forged = encode(others, tenant_id=stored, context={"tenant_id": stored}).tenant_id
        assert forged == clean_tenant_id(stored) != stored
        assert encode(others, context={"tenant_id": stored}).tenant_id == forged
    for plain in ("[sha256:" + "0" * 32 + "]", "a" * 100, str(uuid.UUID(int=7)), stored + "x"):
        assert encode(tenant_id=plain).tenant_id == plain


def test_tenants_that_have_to_be_cleaned_stay_distinct():
    ids = ["a\0b", "a\u2400b", "x" * 3000, "x" * 3001, "A", "a", "\ud800", "\ufffd"]
    cleaned = {clean_tenant_id(tenant) for tenant in ids}
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


class Pair(NamedTuple):
    password: str
    n: int = 1


class Aliased(pydantic.BaseModel):
    pw: str = pydantic.Field(alias="password")
    inner: list[Aliased] = []
    n: int = 1


class ArrayStruct(msgspec.Struct, array_like=True):
    password: str
    n: int = 1


class Renamed(msgspec.Struct, rename={"pw": "password"}, tag="kind"):
    pw: str
    unset: str | msgspec.UnsetType = msgspec.UNSET


class Row:
    """What some database drivers return."""

    def keys(self):
        return ["password", "n"]

    def __getitem__(self, name):
        return {"password": "secret", "n": 1}[name]


def sqlite_row():
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    return connection.execute("SELECT 'secret' AS password, 1 AS n").fetchone()


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (Pair("secret"), {"password": "[REDACTED]", "n": 1}),
        (sqlite_row(), {"password": "[REDACTED]", "n": 1}),
        (Row(), {"password": "[REDACTED]", "n": 1}),
        (ArrayStruct("secret"), {"password": "[REDACTED]", "n": 1}),
        (Renamed("secret"), {"type": "kind", "password": "[REDACTED]"}),
        (
            Aliased(password="secret", inner=[{"password": "secret"}]),
            {
                "pw": "[REDACTED]",
                "inner": [{"pw": "[REDACTED]", "inner": [], "n": 1}],
                "n": 1,
            },
        ),
        ({b"password": "secret"}, {"cGFzc3dvcmQ=": "[REDACTED]"}),
        (
            [(b"Password", b"secret"), (b"n", b"x")],
            [["UGFzc3dvcmQ=", "[REDACTED]"], ["bg==", "eA=="]],
        ),
        ([[b"password", b"secret"]], [["cGFzc3dvcmQ=", "[REDACTED]"]]),
        ([("password", "secret"), (1, 2)], [["password", "[REDACTED]"], [1, 2]]),
        (["password", "email"], ["password", "email"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_redaction_sees_the_names_of_whatever_has_names(value, form):
    for others in ({}, {"nul": "\0"}):
        event = encode({"v": value, **others}, redact=["password"])
        assert event.metadata["v"] == form


@pytest.mark.parametrize(
    "key",
    [
        "\uff50\uff41\uff53\uff53word",  # full width
        "pass\u200bword",  # a space of no width
        "pass\u00adword",  # a soft hyphen
        " password ",
    ],
)
def test_redaction_sees_through_other_spellings(key):
    assert encode({key: "secret"}, redact=["password"]).metadata == {key: "[REDACTED]"}


@pytest.mark.parametrize(
    ("rule", "given"),
    [
        ("http.header.authorization", {"http.header.authorization": "secret"}),
        ("http.header.authorization", {"a": [{"HTTP.header.authorization": "secret"}]}),
        ("metadata.card.number", {"card.number": "secret"}),
        ("metadata.a.card.number", {"a": {"card.number": "secret"}}),
        ("metadata.*.number", {"card.number": "secret"}),
    ],
)
def test_a_path_matches_keys_with_dots_in_them(rule, given):
    for others in ({}, {"nul": "\0"}):
        assert "secret" not in str(encode({**given, **others}, redact=[rule]))
    other = {"number": "kept", "authorization": "kept", "x.card.number": "kept"}
    assert encode(other, redact=[rule]).metadata == other


def default_redactor():
    return parse_options({"namespace": "n", "adapter": "sqlite:///x"}).redact


@pytest.mark.parametrize(
    "key",
    [
        *("password", "Authorization", "set-cookie", "Set_Cookie", "accessToken", "API-Key"),
        *("apikey", "client_secret", "http.request.header.authorization", b"authorization"),
    ],
)
def test_names_of_secrets_are_redacted_by_default(key):
    encoder = EventEncoder(LimitOptions(), default_redactor(), Counters())
    for held in ({key: "hunter2"}, {"a": [{key: "hunter2"}]}, {key: "hunter2", "nul": "\0"}):
        entry = encoder.encode("a", {"new_values": held}, None, {}, time.time())
        assert b"hunter2" not in entry.payload
        assert b"[REDACTED]" in entry.payload


def test_names_that_only_hold_a_secrets_name_are_not_redacted_by_default():
    given = dict.fromkeys(
        (
            *("token_count", "tokenizer", "password_changed_at", "cookie_consent", "secretary"),
            *("api_key_id", "authorization_id", "keys", "author", "pins", "session_id"),
        ),
        "kept",
    )
    encoder = EventEncoder(LimitOptions(), default_redactor(), Counters())
    for others in ({}, {"nul": "\0"}):
        entry = encoder.encode("a", {"metadata": {**given, **others}}, None, {}, time.time())
        assert decode_event(entry.payload).metadata.items() >= given.items()


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


@pytest.mark.parametrize("value", [Login("s"), BrokenModel(), Changing(password="secret")])
def test_redaction_leaves_no_text_of_what_cannot_be_read(value):
    unreadable = f"[UNREADABLE {type(value).__name__}]"
    for held in (value, [value], {"b": value}):
        event = encode({"a": held}, redact=["password"])
        assert "secret" not in str(event)
        assert unreadable in str(event)


class Opaque:
    def __str__(self):
        return "opaque"


class Course:
    """What an ORM returns: it has no text of its own."""


class Named:
    def __str__(self):
        return "text"


def test_an_object_of_which_only_its_address_is_stored_is_counted():
    counters = Counters()
    encode(new_values=Course(), counters=counters)
    encode({"a": [Course()]}, counters=counters)
    encode(old_values=Named(), counters=counters)
    assert counters["opaque_values"] == 3
    assert "Named" in counters.example("opaque_values")
    assert "pass a dict" in counters.example("opaque_values")
    encode({"a": Named(), "b": ValueError("x"), "c": ID, "d": Point(1, "p")}, counters=counters)
    assert counters["opaque_values"] == 3


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
    "key", ["password\ufe0f", "pass\u034fword", "p\u3164assword", "\u200bpassw\U000e0100ord"]
)
def test_what_nobody_sees_in_a_name_hides_no_secret(key):
    assert encode({key: "secret"}, redact=["password"]).metadata == {key: "[REDACTED]"}


def test_long_names_that_grow_or_have_many_marks_are_folded_in_bounded_work(monkeypatch):
    given = []
    normalize = unicodedata.normalize

    def counted(form, text):
        given.append(len(text))
        return normalize(form, text)

    monkeypatch.setattr(unicodedata, "normalize", counted)
    for start in ("a" + "\u0323\u0301" * 4000, "\ufdfa" * 8000, "\ufdfa" * 100):
        given.clear()
        redaction._compared.cache_clear()
        encode({f"{start}{n}": n for n in range(3000)}, redact=["password"])
        assert max(given, default=0) <= 128
        assert sum(given) < 100_000


def test_names_on_the_way_to_many_values_are_folded_once(monkeypatch):
    folded = []
    clean = redaction.clean_text
    monkeypatch.setattr(redaction, "clean_text", lambda text: folded.append(text) or clean(text))
    redactor = Redactor(["metadata.*.*.number"])
    redaction._compared.cache_clear()
    folded.clear()
    values = {"caf\u00e9" * 30: {"b." * 4000: [{"number": 1}] * 1000}}
    Normalizer(2048, redactor, room=256_000).object(values, "metadata")
    assert len(folded) < 10


def test_a_structured_array_keeps_the_names_of_its_fields():
    np = pytest.importorskip("numpy")
    array = np.array([("hunter2", 1)], dtype=[("password", "U10"), ("number", "i4")])
    expected = {"password": "[REDACTED]", "number": [1]}
    for value in (array, array.view(np.recarray)):
        assert encode({"v": value}, redact=["password"]).metadata == {"v": expected}
    assert encode({"v": array[0]}).metadata == {"v": {"password": "hunter2", "number": 1}}


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


INJECTED = msgspec.Raw(b'1},"tenant_id":"victim","actor_id":"ceo","x":{"a":1')


class Holding(enum.Enum):
    RAW = INJECTED
    TUPLE = (INJECTED,)


@pytest.mark.parametrize(
    "value",
    [
        Holding.RAW,
        Holding.TUPLE,
        [Holding.RAW],
        {"k": Holding.RAW},
        {Holding.RAW: 1},
        ({"k": [Holding.RAW]},),
        frozenset({Holding.RAW}),
    ],
    ids=range(7),
)
def test_raw_json_in_an_enum_is_read_as_well(value):
    for field in ("metadata", "old_values", "new_values"):
        event = encode(**{field: {"v": value}, "tenant_id": "t1", "actor_id": "a"})
        assert (event.tenant_id, event.actor_id) == ("t1", "a")


def test_an_enums_member_is_its_value_on_either_path():
    for others in ({}, {"nul": "\0"}):
        given = {"a": Colour.RED, "b": [Colour.RED], "c": Role.ADMIN, **others}
        assert encode(given).metadata.items() >= {"a": "red", "b": ["red"], "c": "admin"}.items()


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


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("tenant", "tenant_id"),
        ("tenantId", "tenant_id"),
        ("tennant_id", "tenant_id"),
        ("actor", "actor_id"),
        ("user_id", "actor_id"),
        ("old_value", "old_values"),
        ("meta", "metadata"),
        ("ip", "ip_address"),
    ],
)
def test_a_misspelt_field_is_counted_with_what_is_meant(name, meant):
    counters = Counters()
    event = encode(extra={name: "x"}, counters=counters)
    assert event.metadata == {name: "x"}
    assert counters["unknown_fields"] == 1
    assert f"{name!r}: did you mean {meant!r}?" in counters.example("unknown_fields")
    value = {} if meant.endswith(("values", "data")) else "y"
    encode(extra={name: "x"}, **{meant: value}, counters=counters)
    assert counters["unknown_fields"] == 1, "the field is there, so the name is another thing"


def test_names_that_are_meant_for_the_metadata_are_not_counted():
    counters = Counters()
    names = ["colour", "plan", "entity_ids", "actor_name", "tenant_name", "trace_id", "users"]
    encode(extra=dict.fromkeys([*names, 7, "x" * 1000], 1), counters=counters)
    encode({"tenant": "t"}, counters=counters)
    assert counters["unknown_fields"] == 0


def test_unknown_names_are_counted_as_configured():
    for mode, counted in (("allow", (0, 0)), ("warn", (1, 0)), ("refuse", (0, 2))):
        counters = Counters()
        encoder = EventEncoder(LimitOptions(), None, counters, mode)
        entry = encoder.encode("a", {}, {"tenant": "t", "colour": 1}, {}, time.time())
        assert decode_event(entry.payload).metadata == {"tenant": "t", "colour": 1}
        assert (counters["unknown_fields"], counters["refused_fields"]) == counted


def test_the_time_of_a_call_is_the_same_on_either_path():
    encoder = EventEncoder(LimitOptions(), None, Counters())
    for created in (1764033655.6037, 1764033655.1234567, 1764033655.9999997, 1764033655.0):
        times = {
            decode_event(encoder.encode(action, {}, None, {}, created).payload).created_at
            for action in ("a", "a\0", "a", "a\0")
        }
        assert len(times) == 1


def test_unknown_names_join_the_metadata():
    event = encode({"plan": "pro"}, extra={"colour": "red"})
    assert event.metadata == {"plan": "pro", "colour": "red"}
