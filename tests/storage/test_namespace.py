"""Whose a namespace's folder is, and what it is for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from logbun_logging import AuditTrail, ConfigurationError
from logbun_logging._storage.namespace import Namespace, check_owner, read_note
from tests.fakes import MemoryAdapter

LEAVING = """
import logging, os, sys
from logbun_logging import AuditTrail
trail = AuditTrail(namespace="app", mode="durable", data_dir="data", adapter=sys.argv[1])
logging.getLogger().addHandler(trail.handler)
logging.warning("left", extra={"tenant_id": "t1"})
os._exit(0)
"""


def leave_an_event(tmp_path, url):
    """Let a process die before its event is in its database."""
    subprocess.run([sys.executable, "-c", LEAVING, url], cwd=tmp_path, check=True)


def open_trail(tmp_path, url, **options):
    return AuditTrail(
        namespace="app", mode="durable", data_dir=tmp_path / "data", adapter=url, **options
    )


def test_events_that_wait_for_one_database_are_not_put_into_another(tmp_path):
    leave_an_event(tmp_path, "sqlite:///one.db")

    with pytest.raises(ConfigurationError, match=r"events wait in .*app, for another database"):
        open_trail(tmp_path, f"sqlite:///{tmp_path}/other.db")

    assert not (tmp_path / "other.db").exists()
    with open_trail(tmp_path, f"sqlite:///{tmp_path}/one.db") as trail:
        assert trail.flush(20)
        assert [event.action for event in trail.query(tenant_id="t1").logs] == ["left"]


def test_a_namespace_in_which_nothing_waits_may_get_another_database(tmp_path):
    for name in ("one", "other"):
        with open_trail(tmp_path, f"sqlite:///{tmp_path}/{name}.db") as trail:
            trail.handler.handle(_record())
            assert trail.flush(20)
        assert read_note(tmp_path / "data/app").database == f"sqlite:{tmp_path}/{name}.db"


def test_the_other_kind_of_tenancy_is_refused_as_well(tmp_path):
    leave_an_event(tmp_path, "sqlite:///one.db")
    tenancy = {"mode": "database_per_tenant", "resolve_connection": lambda tenant: None}

    with pytest.raises(ConfigurationError, match="'database_per_tenant': events wait in"):
        open_trail(tmp_path, None, tenancy=tenancy)


def test_dead_letters_wait_as_well(tmp_path):
    adapter = MemoryAdapter()
    adapter.down = True
    options = {"namespace": "app", "data_dir": tmp_path / "data"}
    with AuditTrail(**options, adapter=adapter, retry={"max_retries": 0}) as trail:
        trail.handler.handle(_record())
        assert trail.flush(20)
        assert trail.stats()["dlq"]["pending"] == 1

    with pytest.raises(ConfigurationError, match="for another database"):
        AuditTrail(**options, adapter=f"sqlite:///{tmp_path}/a.db")


def test_a_volatile_trail_that_needs_no_file_makes_none(tmp_path):
    with AuditTrail(namespace="app", data_dir=tmp_path / "data", adapter=MemoryAdapter()) as trail:
        trail.handler.handle(_record())
        assert trail.flush(20)

    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("text", ["", "{", '{"v": 1}', "[" * 2000, "\xff"])
def test_a_note_that_cannot_be_read_says_nothing(tmp_path, text):
    (tmp_path / "namespace.json").write_text(text, encoding="latin-1")

    assert read_note(tmp_path) is None


def test_a_note_that_is_no_file_says_nothing(tmp_path):
    os.mkfifo(tmp_path / "namespace.json")

    assert read_note(tmp_path) is None


def test_a_note_tells_nothing_secret(tmp_path):
    pytest.importorskip("clickhouse_connect")
    url = "clickhouse://user:s3cret@127.0.0.1:9/db"
    with AuditTrail(namespace="app", mode="durable", data_dir=tmp_path, adapter=url) as trail:
        trail.pipeline.start()

    found = json.loads((tmp_path / "app/namespace.json").read_text())
    assert found == {
        "v": 1,
        "tenancy": "single_database",
        "database": "clickhouse:127.0.0.1:9/db",
    }


def test_a_folder_that_everybody_may_write_is_refused(tmp_path):
    folder = tmp_path / "data/app/wal"
    folder.mkdir(parents=True)
    folder.chmod(0o777)

    with pytest.raises(ConfigurationError, match=r"everybody may write in .*wal"):
        open_trail(tmp_path, f"sqlite:///{tmp_path}/a.db")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_of_another_user_is_refused(tmp_path):
    folder = tmp_path / "data/app"
    folder.mkdir(parents=True)
    os.chown(folder, 65534, 65534)

    with pytest.raises(ConfigurationError, match="belongs to the user 65534"):
        open_trail(tmp_path, f"sqlite:///{tmp_path}/a.db")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a link of another user")
def test_a_link_of_another_user_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "mine")
    check_owner(link)
    os.lchown(link, 65534, 65534)

    with pytest.raises(ConfigurationError, match="belongs to the user 65534"):
        check_owner(link)


BEGINNING = """
import logging, os, sys
from logbun_logging import AuditTrail
name = sys.argv[1]
trail = AuditTrail(namespace="app", mode="durable", data_dir="data",
                   adapter=f"sqlite:///{name}.db", retry={"first_scan": 0.01})
logging.getLogger().addHandler(trail.handler)
print("made", flush=True)
sys.stdin.readline()
logging.warning(name)
print("logged", flush=True)
if sys.stdin.readline() == "deliver\\n":
    trail.ready(20)
    trail.flush(20)
    try:
        trail.run_maintenance()
    except Exception as error:
        print(error, flush=True)
    trail.shutdown(20)
os._exit(0)
"""


def test_of_two_trails_made_while_nothing_waits_the_first_to_log_has_the_folder(tmp_path):
    command = [sys.executable, "-c", BEGINNING]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": tmp_path}
    with (
        subprocess.Popen([*command, "first"], **options) as first,
        subprocess.Popen([*command, "second"], **options) as second,
    ):
        for process in (first, second):
            assert process.stdout.readline() == "made\n"
        for process in (first, second):
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "logged\n"
        first.communicate("die\n")
        told = second.communicate("deliver\n")[0]

    assert f"events wait in {tmp_path}/data/app, for another database" in told
    assert read_note(tmp_path / "data/app").database == f"sqlite:{tmp_path}/first.db"
    with open_trail(tmp_path, f"sqlite:///{tmp_path}/first.db") as trail:
        assert trail.flush(20)
    for name in ("first", "second"):
        url = f"sqlite:///{tmp_path}/{name}.db"
        with AuditTrail(namespace=name, data_dir=tmp_path, adapter=url) as trail:
            assert [event.action for event in trail.query().logs] == [name]


def test_many_who_make_the_first_note_at_once_all_get_the_folder(tmp_path):
    spaces = [Namespace(tmp_path / "app", "single_database", "sqlite:/a.db") for _ in range(8)]
    barrier = threading.Barrier(len(spaces))

    def hold(space):
        barrier.wait()
        with space.held():
            return read_note(tmp_path / "app").database

    with ThreadPoolExecutor(len(spaces)) as pool:
        assert set(pool.map(hold, spaces)) == {"sqlite:/a.db"}


def test_a_note_that_is_gone_is_written_again_with_the_next_file(tmp_path):
    namespace = Namespace(tmp_path / "app", "single_database", "sqlite:/a.db")
    for _ in range(2):
        with namespace.held():
            assert read_note(tmp_path / "app").database == "sqlite:/a.db"
        (tmp_path / "app/namespace.json").unlink()


def test_while_somebody_makes_a_file_nobody_changes_the_note(tmp_path, monkeypatch):
    monkeypatch.setattr("logbun_logging._storage.namespace._PATIENCE", 0.01)
    ours = Namespace(tmp_path / "app", "single_database", "sqlite:/a.db")
    theirs = Namespace(tmp_path / "app", "single_database", "sqlite:/other.db")
    with ours.held():
        with ours.held(), pytest.raises(OSError), theirs.held():
            pass
        assert read_note(tmp_path / "app").database == "sqlite:/a.db"
    with theirs.held():
        assert read_note(tmp_path / "app").database == "sqlite:/other.db"


def test_a_note_that_cannot_be_written_keeps_no_event_from_the_disk(tmp_path):
    (tmp_path / "data/app/namespace.json").mkdir(parents=True)

    leave_an_event(tmp_path, "sqlite:///one.db")

    with open_trail(tmp_path, f"sqlite:///{tmp_path}/one.db") as trail:
        assert trail.flush(20)
        assert [event.action for event in trail.query(tenant_id="t1").logs] == ["left"]


def _record():
    import logging

    return logging.makeLogRecord({"msg": "course.created", "levelno": 20, "levelname": "INFO"})
