"""Signal handlers that log, or raise, in the midst of a call that waits for a shared sync."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.faults.rig import ROOT


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("handler", ["logs", "raises"])
def test_a_signal_handler_leaves_nobody_waiting_and_nothing_lost(handler, threads):
    arguments = ["--threads", str(threads), "--signals", "150"]
    if handler == "raises":
        arguments.append("--raising")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.signal_storm", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 lost, 0 doubled" in done.stdout
