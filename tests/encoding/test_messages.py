"""No secret gets into a message, whatever its spelling."""

from __future__ import annotations

from pathlib import Path

import pytest

from logbun_logging import AuditTrail, ConfigurationError
from logbun_logging._encoding.messages import masked, shown
from logbun_logging.adapters import create_adapter

S = "S3cr3t"


@pytest.mark.parametrize(
    "spec",
    [
        f"clickhouse://u:{S}@h:99999/db",
        f"clickhouse://u:a@{S}@h:99999/db",
        f"clickhouse://u:a'{S}@h:99999/db",
        f"clickhouse://u:a {S}@h:99999/db",
        f"clickhouse://u:a/{S}@h/db",
        f"clickhouse://u:a#{S}@h/db",
        f"clickhouse://u:a?{S}@h/db",
        f"clickhouse://u:a://{S}@h/db",
        f"clickhouse://{S}@h:99999/db",
        f"clickhouse://a/b:{S}@h:99999/db",
        f"clickhouse://u:{S}@h/db?x=1",
        f"nosuch://u:{S}@h/db",
        f"u:{S}@h/db",
        f"libsql://h?auth_token={S}&x=1",
        f"libsql://h?jwt={S}",
        f"libsql://h?auth={S}",
        f"libsql://h?pwd={S}",
        f"libsql://h?auth%5Ftoken%3D{S}",
        f"libsql://h?auth_token=x#{S}",
        f"sqlite://u:{S}@h/db",
        f"sqlite:///a.db?key={S}",
        {"type": "clickhouse", "host": "h", "password": S, "nope": 1},
        {"type": "clickhouse", "host": 5, "password": f"correct {S} staple"},
        {"type": "clickhouse", "host": "h", "passphrase": S},
        {"type": "turso", "url": "libsql://h", "auth": S},
        {"type": "nope", "password": S},
        {"type": "clickhouse", "host": "h", "settings": f"password=a {S}"},
        f"clickhouse://u:{S}@h".encode(),
        [f"clickhouse://u:{S}@h"],
        Path(f"clickhouse://u:{S}@h"),
        {"type": "turso", "url": "libsql://h", "auth_token": S.encode()},
        f"clickhouse://u:{S}",
        f"clickhouse://u:{S}/db",
        f"nosuch://u:1{S}/db",
        f"Bearer {S}",
        {f"clickhouse://u:{S}@h/db": None},
        {"url": f"clickhouse://u:{S}@h/db"}.values(),
        {"url": f"clickhouse://u:{S}@h/db"}.items(),
        bytearray(f"clickhouse://u:{S}@h/db".encode()),
    ],
)
def test_no_spelling_of_a_secret_gets_into_the_error(spec):
    with pytest.raises(ConfigurationError) as caught:
        create_adapter(spec)

    assert S not in str(caught.value)
    assert S not in repr(caught.value)


def test_the_options_of_a_trail_show_no_secret(tmp_path):
    pytest.importorskip("clickhouse_connect")
    url = f"clickhouse://u:{S}@127.0.0.1:9/db"
    with AuditTrail(namespace="test", data_dir=tmp_path, adapter=url) as trail:
        assert S not in repr(trail.options)
        assert "***@127.0.0.1:9/db" in repr(trail.options)


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("mode", "durabel", "'durabel'"),
        ("insert_timeout", -1, "-1"),
        ("adapter", "clickhouse://h:8123/db", "'clickhouse://h:8123/db'"),
        ("adapter", "clickhouse://[::1]:8123/db", "'clickhouse://[::1]:8123/db'"),
        ("adapter", "libsql://h:8080", "'libsql://h:8080'"),
        ("adapter", "sqlite:///a/b.db", "'sqlite:///a/b.db'"),
        ("adapter", "libsql://h/p?auth_token=x&tls=0", "'libsql://h/p?auth_token=***&tls=***'"),
        ("adapter", {"type": "turso", "auth_token": "x"}, "{'type': ..., 'auth_token': ...}"),
        ("adapter.auth_token", "x", "***"),
        ("adapter.auth_token", None, "None"),
        ("namespace", "a" * 300, repr("a" * 300)[:197] + "..."),
    ],
)
def test_what_is_no_secret_is_shown(option, value, text):
    assert shown(option, value) == text


def test_a_value_that_cannot_be_shown_hides_no_message():
    class Hostile:
        def __repr__(self):
            raise RuntimeError

    assert shown("adapter", Hostile()) == "<unprintable Hostile>"


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        (f"cannot reach postgresql://u:a b@{S}@h/db", "cannot reach postgresql://***@h/db"),
        (f"HTTP 401: Basic {S}==, go away", "HTTP 401: Basic ***, go away"),
        (f'{{"password": "a {S}"}}', '{"password": ***}'),
        (f"auth_token={S}&x=1", "auth_token=***&x=1"),
        (f"u:{S}@h refused", "u:***@h refused"),
        (f"private_key: {S}", "private_key: ***"),
        (f"secret_access_key={S}&x", "secret_access_key=***&x"),
        (f"X-Api-Key: {S}", "X-Api-Key: ***"),
        (f"Authorization: Token {S}\nnext", "Authorization:***\nnext"),
        (f"Cookie: a=b; session={S}", "Cookie:***"),
        (f"auth={S} key={S}", "auth=*** key=***"),
        (f"MY_DB_PASSWORD={S}; UID=sa", "MY_DB_PASSWORD=*** UID=sa"),
        ("Key (id)=(5) already exists", "Key (id)=(5) already exists"),
        ("at 12:30, a@b.c: no route", "at 12:30, a@b.c: no route"),
        ("no such table: tokens", "no such table: tokens"),
        ("the password is wrong", "the password is wrong"),
    ],
)
def test_the_text_of_others_is_searched_for_secrets(text, safe):
    assert masked(text) == safe


@pytest.mark.parametrize("part", ["a", "a-", "pass", "auth", "http://", "key_", "a:", "password "])
def test_of_a_long_text_of_others_a_bounded_part_is_searched(part):
    # Of all of it, with an unbounded pattern, this would take an hour.
    assert len(masked(part * (1_000_000 // len(part)))) <= 16_384
