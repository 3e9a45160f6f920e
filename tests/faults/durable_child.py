"""Logs from several threads and prints each id after its call has returned, until it is killed."""

from __future__ import annotations

import logging
import os
import sys
import threading

from logbun_logging import AuditTrail, get_audit_logger


def main() -> None:
    folder, fsync, run = sys.argv[1:]
    trail = AuditTrail(
        namespace="kill",
        data_dir=folder,
        mode="durable",
        fsync=fsync,
        adapter=f"sqlite:///{folder}/audit.db",
        batching={"flush_interval": 0.05},
        wal={"segment_bytes": 65_536},
    )
    logger = logging.getLogger("kill")
    logger.addHandler(trail.handler)
    logger.setLevel(logging.INFO)
    audit = get_audit_logger("kill")

    def work(thread: int) -> None:
        number = 0
        while True:
            name = f"{run}-{thread}-{number}"
            audit.fire("x.y", tenant_id=f"t{thread % 3}", actor_id="u", entity_id=name)
            os.write(1, name.encode() + b"\n")
            number += 1

    for thread in range(3):
        threading.Thread(target=work, args=(thread,), daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
