"""The rules of back-pressure, row by row."""

from __future__ import annotations

import pytest

from logbun_logging._engine.backpressure import Policy, decide

DURABLE, SPILL = Policy(durable=True, on_queue_full="dlq"), Policy(False, "dlq")
DROP, BLOCK = Policy(False, "drop"), Policy(False, "block")
DURABLE_BLOCK = Policy(True, "block")


@pytest.mark.parametrize(
    ("policy", "over", "stalled", "used", "decision"),
    [
        # within its bound, a tenant has room until memory is used up
        (DURABLE, False, True, 1.0, "admitted"),
        (SPILL, False, True, 1.0, "admitted"),
        (DROP, False, True, 1.0, "admitted"),
        (DURABLE, False, False, 1.1, "full"),
        (SPILL, False, False, 1.1, "full"),
        (BLOCK, False, False, 1.1, "full"),
        (DROP, False, False, 1.1, "drop"),
        # a burst is no outage
        (DROP, True, False, 0.9, "admitted"),
        (DROP, True, True, 0.1, "drop"),
        (SPILL, True, True, 0.9, "admitted"),
        # a noisy tenant leaves memory to the others
        (DURABLE, True, False, 0.5, "admitted"),
        (DURABLE, True, False, 0.51, "full"),
        (SPILL, True, False, 0.96, "full"),
        (DROP, True, False, 0.96, "drop"),
        # who blocks, waits once
        (BLOCK, True, False, 0.1, "wait"),
        (BLOCK, False, False, 0.1, "admitted"),
        (DURABLE_BLOCK, True, True, 0.6, "wait"),
    ],
)
def test_the_table(policy, over, stalled, used, decision):
    assert decide(policy, over=over, stalled=stalled, used=used) == decision


@pytest.mark.parametrize(
    ("policy", "used", "decision"),
    [(BLOCK, 0.9, "admitted"), (BLOCK, 0.96, "full"), (DURABLE_BLOCK, 0.6, "full")],
)
def test_who_has_waited_does_not_wait_again(policy, used, decision):
    assert decide(policy, over=True, stalled=True, used=used, waited=True) == decision
