"""Forks children, which start in milliseconds, as the parent has imported torch, and may be killed."""

import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable
from typing import Any


def fork(action: Callable[[], Any]) -> int:
    """Runs `action` in a child and returns its pid. Exit status: 0, that of a SystemExit, or 1 after an exception."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        action()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait(pid: int, seconds: float = 60.0) -> int:
    """Returns the exit status of a child, or minus the signal that killed it; kills a child that hangs, and fails."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"child {pid} was still running after {seconds} s")


def in_child(action: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Returns or raises the result of `action` in a child; the parent does not get Accelerate's global state."""
    read, write = os.pipe()

    def report() -> None:
        try:
            answer: tuple[bool, Any] = True, action()
        except Exception as error:
            answer = False, error
        with os.fdopen(write, "wb") as pipe:
            pickle.dump(answer, pipe)

    pid = fork(report)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    status = wait(pid, seconds)
    assert status == 0, f"child ended with {status}"
    good, value = pickle.loads(data)
    if not good:
        raise value
    return value
