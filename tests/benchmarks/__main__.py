"""Every benchmark, one after the other: ``python -m tests.benchmarks``.

``--full`` is passed on to those that have it. Exits with 1 if a bound was not kept.
"""

from __future__ import annotations

import subprocess
import sys

NAMES = ("importing", "idle", "calls", "threads", "throughput", "scaling", "reading")

broken = [
    name
    for name in NAMES
    if subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks.{name}", *sys.argv[1:]]
        if name in {"scaling", "reading"}
        else [sys.executable, "-m", f"tests.benchmarks.{name}"],
        check=False,
    ).returncode
]
print("every bound was kept" if not broken else f"bounds broken in: {', '.join(broken)}")
raise SystemExit(bool(broken))
