"""From what a user wrote to an adapter."""

from __future__ import annotations

import pytest

from logbun_logging.adapters import create_adapter
from logbun_logging.errors import ConfigurationError


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:///a.db?busy_timeout=soon", "busy_timeout"),
        ("sqlite:///a.db?colour=red", "adapter.colour: there is no such option"),
        ("sqlite:///acme.db#", "%23"),
        ("sqlite:///acme.db#other", "%23"),
        ("sqlite:///acme.db?", "%3F"),
        ("sqlite:///acme.db?busy_timeout", "%3F"),
        ("sqlite:///ac\nme.db", "control characters"),
        ("sqlite:///ac%0Ame.db", "control characters"),
        ("sqlite:///ac%00me.db", "control characters"),
        ({"url": "oracle://x"}, "type"),
    ],
)
def test_an_adapter_that_cannot_be_made_says_why(url, message):
    with pytest.raises(ConfigurationError, match=message):
        create_adapter(url)


def test_a_url_may_carry_arguments(tmp_path):
    adapter = create_adapter(f"sqlite:///{tmp_path}/a%20b.db?busy_timeout=2.5")
    assert (adapter.path.name, adapter.busy_timeout) == ("a b.db", 2.5)
