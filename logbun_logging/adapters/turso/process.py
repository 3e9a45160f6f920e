"""The driver ``libsql``, in a process of its own.

Its calls have no time-out, and they hold the GIL until the server answers: in the application's
process a server that hangs would stop every thread, and one that is far away would slow them down.
So it runs in a child (``turso_worker``), which is killed when it does not answer in time. Requests
and answers are MessagePack with a length before it, over the child's standard input and output.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec

from logbun_logging.adapters.base import keep_inherited
from logbun_logging.adapters.turso.driver import (
    Endpoint,
    NoAnswerError,
    Rows,
    Statement,
    StatementError,
)
from logbun_logging.adapters.turso.worker import HEADER, Answer, Request

__all__ = ["ProcessDriver"]

_PASSED_ON: Final = (
    *("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Answer).decode


class ProcessDriver:
    """A database behind ``http``, ``https`` or ``file``, by way of a child process.

    One call at a time: others wait for their turn within their own time-out.

    Args:
        endpoint: where it is.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def run(self, statements: Sequence[Statement], timeout: float) -> list[Rows]:
        """Run all *statements* in one transaction; see :class:`Driver`."""
        deadline = time.monotonic() + timeout
        if not self._lock.acquire(timeout=timeout):
            raise NoAnswerError(f"other calls took all of timeout={timeout:g} s")
        try:
            answer = self._ask(statements, deadline, timeout)
        finally:
            self._lock.release()
        if answer.failure is not None:
            raise NoAnswerError(answer.failure)
        if answer.error is not None:
            raise StatementError(*answer.error)
        return answer.results

    def close(self) -> None:
        """Let the child end."""
        with self._lock:
            self._end(patience=1.0)

    def after_fork(self) -> None:
        """Let go of the child, which is the parent's: with it alone its input must end."""
        child = self._child
        if child is not None:
            for pipe in (child.stdin, child.stdout):
                with suppress(OSError):
                    os.close(pipe.fileno())  # type: ignore[union-attr]
            child.returncode = 0
            keep_inherited(child)
        self._reset()

    def _ask(self, statements: Sequence[Statement], deadline: float, timeout: float) -> Answer:
        child = self._child
        if child is None or child.poll() is not None:
            self._end(patience=0)
            child = self._child = _start()
        request = Request(
            self._endpoint.url, self._endpoint.token(), deadline - time.monotonic(), statements
        )
        data = _encode(request)
        try:
            _write(child, HEADER.pack(len(data)) + data, deadline)
            (size,) = HEADER.unpack(_read(child, HEADER.size, deadline))
            return _decode(_read(child, size, deadline))
        except TimeoutError:
            self._end(patience=0)
            raise NoAnswerError(f"no answer within timeout={timeout:g} s") from None
        except (OSError, EOFError):
            self._end(patience=0)
            raise NoAnswerError("the process that runs libsql has died") from None
        except BaseException:  # an answer that nobody has read must not be taken for the next one's
            self._end(patience=0)
            raise

    def _end(self, patience: float) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        with suppress(OSError):
            child.stdin.close()  # type: ignore[union-attr]
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        with suppress(OSError):
            child.stdout.close()  # type: ignore[union-attr]


def _start() -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        # -P: or the first place that it imports from would be the current folder.
        [sys.executable, "-P", "-m", "logbun_logging.adapters.turso.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,  # Ctrl-C is for the application, which has yet to deliver
        # Where it imports from, and which certificates it trusts: no secret is its business.
        env={
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        },
    )
    for pipe in (child.stdin, child.stdout):
        os.set_blocking(pipe.fileno(), False)  # type: ignore[union-attr]
    return child


def _wait(descriptor: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError


def _write(child: subprocess.Popen[bytes], data: bytes, deadline: float) -> None:
    descriptor = child.stdin.fileno()  # type: ignore[union-attr]
    view = memoryview(data)
    while view:
        _wait(descriptor, select.POLLOUT, deadline)
        with suppress(BlockingIOError):
            view = view[os.write(descriptor, view) :]


def _read(child: subprocess.Popen[bytes], size: int, deadline: float) -> bytes:
    descriptor = child.stdout.fileno()  # type: ignore[union-attr]
    parts: list[Any] = []
    while size:
        _wait(descriptor, select.POLLIN, deadline)
        part = os.read(descriptor, size)
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
