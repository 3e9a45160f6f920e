"""Which process this is: every fork is noticed, also one that Python is not told about.

``os.fork`` runs at-fork hooks. A server that embeds Python and forks in C runs none: uWSGI by
default. The child then believes that its parent's threads, locks and files are its own. So each
audit call reads one byte of a page that the kernel wipes in every child (``MADV_WIPEONFORK``): 15
to 20 ns, where asking for the process id costs 50 to 180. On other systems than Linux it is the id.

What has to start anew in a child is given to :func:`register`, and runs once in each child: in the
at-fork hook, or at the first call that finds the page wiped.

uWSGI loads the application in a process that forks the workers afterwards, in C, whoever holds the
interpreter's lock just then: a thread there can halt every worker. :func:`awaits_fork` knows that
process.
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Final, Protocol, TypeVar

import uuid_utils

__all__ = [
    "at_child_exit",
    "awaits_fork",
    "mark",
    "notice",
    "notice_fork",
    "register",
    "register_worker",
]

T = TypeVar("T")

#: ``MADV_WIPEONFORK`` of Linux 4.14, for which Python has no name.
_WIPE_ON_FORK: Final = 18


class _Mark(Protocol):
    def __getitem__(self, index: int, /) -> int: ...
    def __setitem__(self, index: int, value: int, /) -> None: ...


class _ProcessId:
    """Stands in for the page where the kernel cannot wipe one."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __getitem__(self, index: int, /) -> int:
        return os.getpid() == self._pid

    def __setitem__(self, index: int, value: int, /) -> None:
        self._pid = os.getpid()


def _make_mark() -> _Mark:
    if sys.platform == "linux":
        try:
            page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            page.madvise(_WIPE_ON_FORK)
        except OSError:  # an older kernel, or a sandbox
            return _ProcessId()
        page[0] = 1
        return page
    return _ProcessId()


#: ``mark[0]`` is false in a process that has something to notice: see :func:`notice`.
mark: Final[_Mark] = _make_mark()

_callbacks: Final[list[Callable[[], None]]] = []
_worker_callbacks: Final[list[Callable[[], None]]] = []

_noticed = os.getpid()  # the process whose callbacks have run; written under the process's lock
_begun = _noticed  # the process whose callbacks have begun; written under the process's lock

#: One lock for each process: nobody else can have held it when the process was forked. Re-entrant,
#: because a signal handler may log.
_locks: Final[dict[int, threading.RLock]] = {}


def register(callback: Callable[[], None]) -> None:
    """Call *callback* once in every forked child, before anything else of ours runs there."""
    _callbacks.append(callback)


def register_worker(callback: Callable[[], None]) -> None:
    """Call *callback* in every process that uWSGI has forked, when it is ready to work."""
    _worker_callbacks.append(callback)


def notice_fork() -> None:
    """Start anew if this process is a child that has not done so yet."""
    if not mark[0]:
        notice()


def notice() -> int:
    """Start anew if need be, once for all threads; return the id of this process.

    For when ``mark[0]`` is false.
    """
    global _noticed, _begun  # noqa: PLW0603 - the state of the process
    pid = os.getpid()
    if _noticed != pid:
        with _locks.setdefault(pid, threading.RLock()):
            if _begun != pid:
                _begun = pid
                interrupted = [error for callback in _callbacks if (error := _run(callback))]
                _noticed = pid
                if interrupted:
                    raise interrupted[0]
    if _has_forked(pid):
        uuid_utils.reseed_rng()
        mark[0] = 1
    return pid


def _run(callback: Callable[[], None]) -> BaseException | None:
    """Run *callback* to its end; return what a signal handler has raised meanwhile.

    What is half started anew would stay so: nobody calls it again.
    """
    interrupted: BaseException | None = None
    while True:
        try:
            callback()
        except Exception:  # as Python does with its own hooks: the others still run
            traceback.print_exc()
        except BaseException as error:  # KeyboardInterrupt, say
            interrupted = error
            continue
        return interrupted


def _has_forked(pid: int) -> bool:
    """Tell whether this is the thread that has come through the fork, with its random numbers.

    The generator of ids has random numbers for each thread. This one would repeat its parent's,
    and so its ids; threads that were started later do not. The mark stays wiped until it comes by.
    """
    if sys.platform == "linux":
        return threading.get_native_id() == pid
    return threading.current_thread() is threading.main_thread()


os.register_at_fork(after_in_child=lambda: notice())  # noqa: PLW0108 - tests take its place


def at_child_exit(target: T, finish: Callable[[T], object]) -> None:
    """Call *finish* when a ``multiprocessing`` child ends: those run no ``atexit`` handlers."""
    process = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None:
        return
    from multiprocessing.util import Finalize  # noqa: PLC0415 - only where it is in use

    reference = weakref.ref(target)

    def end() -> None:
        found = reference()
        if found is not None:
            finish(found)

    Finalize(None, end, exitpriority=0)


# ── servers that fork in C, and snapshots ──


def awaits_fork() -> bool:
    """Tell whether this is the process of uWSGI that loads the application for its workers."""
    uwsgi = _uwsgi()
    return uwsgi is not None and not (
        uwsgi.worker_id()
        or uwsgi.mule_id()
        or (hasattr(uwsgi, "i_am_the_spooler") and uwsgi.i_am_the_spooler())
    )


def _uwsgi() -> ModuleType | None:
    """Return the module that uWSGI makes in its own processes; never a file of that name."""
    found = sys.modules.get("uwsgi")
    return found if hasattr(found, "worker_id") and hasattr(found, "mule_id") else None


def _hook_into_uwsgi(uwsgi: ModuleType) -> None:
    """Have uWSGI tell of its forks, besides whoever it tells already."""
    before = getattr(uwsgi, "post_fork_hook", None)

    def post_fork() -> None:
        if before is not None:
            before()
        notice_fork()
        for callback in _worker_callbacks:
            callback()

    uwsgi.post_fork_hook = post_fork  # type: ignore[attr-defined]


def _hook_into_lambda() -> None:
    """Draw new random numbers when AWS Lambda resumes a snapshot, which it may do many times."""
    try:
        from snapshot_restore_py import (  # type: ignore[import-not-found]  # noqa: PLC0415
            register_after_restore,
        )
    except ImportError:
        return
    register_after_restore(uuid_utils.reseed_rng)


if (_found := _uwsgi()) is not None:
    _hook_into_uwsgi(_found)
if "AWS_LAMBDA_FUNCTION_NAME" in os.environ:
    _hook_into_lambda()
