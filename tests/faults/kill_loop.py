"""Kill -9 at random moments: ``python -m tests.faults.kill_loop --rounds 200``.

Each round starts a process that logs from several threads and prints every id after its call has
returned, kills it, and starts the next, which adopts what the one before left. At the end a last
process delivers the rest, and the ids that were printed are compared with the rows.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

from logbun_logging import AuditTrail


def run(rounds: int, folder: Path, rng: random.Random) -> tuple[int, int, int]:
    """Return the numbers of acknowledged, lost and doubled events."""
    acknowledged: set[str] = set()
    for number in range(rounds):
        fsync = rng.choice(["always", "interval", "never"])
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.durable_child", str(folder), fsync, str(number)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert process.stdout is not None
        # Random in the number of events, not in time: the moment is as random, the test no slower.
        for _ in range(rng.randrange(1, 3000)):
            acknowledged.add(process.stdout.readline().decode().strip())
        process.kill()
        acknowledged.update(line for line in process.stdout.read().decode().split("\n")[:-1])
        process.stdout.close()
        process.wait()
    with AuditTrail(
        namespace="kill",
        data_dir=folder,
        mode="durable",
        adapter=f"sqlite:///{folder}/audit.db",
    ) as trail:
        assert trail.ready(30)
        assert trail.flush(120)
    connection = sqlite3.connect(folder / "audit.db")
    rows = [row[0] for row in connection.execute("SELECT entity_id FROM audit_logs")]
    connection.close()
    return len(acknowledged), len(acknowledged - set(rows)), len(rows) - len(set(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        acknowledged, lost, doubled = run(
            arguments.rounds, Path(folder), random.Random(arguments.seed)
        )
    print(
        f"{arguments.rounds} kills: {acknowledged:,} acknowledged, {lost} lost, {doubled} doubled"
    )
    sys.exit(bool(lost or doubled))


if __name__ == "__main__":
    main()
