"""Ends a run of several processes if one of them dies, is stopped or hangs, and names it; the others would wait forever.

A thread of every process sends one datagram per second to the others. It reports that the process runs, whether its main
thread waits for the others, and how long ago it last made progress. A process that sends nothing is stopped or dead. One that
neither waits nor makes progress in the middle of a step that the others have finished hangs. A long validation, compilation or
encoding of captions raises no alarm: the process still reports, and is not in a step or has done only a few.
"""

import json
import math
import os
import secrets
import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t2i.distributed import Ranks

BEAT_SECONDS = 1.0
MEET_SECONDS = 3.0  # how long to wait for the first datagrams of the others
SILENT_SECONDS = 30.0  # a process that sends nothing for this long is stopped or dead
HUNG_SECONDS = 30.0  # a step hangs if it takes at least this long, ...
HUNG_STEPS = 20  # ... and at least this many times as long as usual
FIRST_STEPS = 3  # steps in which kernels are compiled and buffers allocated
_WAITING = ("/torch/distributed/", "/torch/autograd/graph.py", "/torch/nn/parallel/", "/t2i/distributed.py")


@dataclass
class _Peer:
    """Facts about another process."""

    rank: int
    host: str
    pid: int
    address: tuple[str, int]
    heard: float | None = None  # time of its last datagram; None: it sent none yet and is not judged
    report: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"rank {self.rank} (pid {self.pid} on {self.host})"

    def state(self) -> str | None:
        """Returns Linux's state letter of a process on this machine, "" if it is gone, None if it is unknown."""
        return _state_of(self.pid) if self.host == socket.gethostname() else None


class Watchdog:
    """Watches the processes of a run, and the data workers of this one. Close it when the run ends.

    Args:
        ranks: the processes of the run.
        patience: seconds that any step may take before it counts as hung.
        alarm: called in the watching thread with a message that names the failed process; it must end this process.
    """

    def __init__(self, ranks: Ranks, patience: float, alarm: Callable[[str], None]):
        self._ranks, self._patience, self._alarm = ranks, max(patience, HUNG_SECONDS), alarm
        self._steps, self._changed = 0, time.monotonic()
        self._durations: tuple[float, ...] = ()  # of the last steps; replaced, not modified, as two threads use it
        self._seen: tuple[int, int] = (0, 0)
        self._children: dict[int, float] = {}  # process ids of stopped data workers, and since when they are stopped
        self._done = threading.Event()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._peers, self._token = self._meet()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        for _ in range(round(MEET_SECONDS / 0.02)):
            if all(peer.heard is not None for peer in self._peers):
                break
            time.sleep(0.02)

    def _meet(self) -> tuple[list[_Peer], str]:
        """Exchanges addresses and process ids; returns the other processes and a token that all share."""
        if self._ranks.num_processes == 1:
            return [], ""
        here = _own_address()
        self._socket.bind((here, 0))
        self._socket.settimeout(BEAT_SECONDS)
        mine = (socket.gethostname(), os.getpid(), self._socket.getsockname())
        token = self._ranks.broadcast(secrets.token_hex(8))
        everyone = self._ranks.everyone(mine)
        self._rank = everyone.index(mine)
        peers = [_Peer(rank, *one) for rank, one in enumerate(everyone) if rank != self._rank]
        return peers, token

    def step(self, steps: int) -> None:
        """Records the number of steps that this process has done; called by the main thread."""
        now = time.monotonic()
        self._durations = (*self._durations[-49:], now - self._changed)
        self._steps, self._changed = steps, now

    def close(self) -> None:
        """Stops watching, and tells the others to stop watching this process."""
        if self._done.is_set():
            return
        self._done.set()
        self._send({"over": True})
        self._thread.join(2 * BEAT_SECONDS)
        self._socket.close()

    def dead(self) -> str | None:
        """Returns the name of a process on this machine that has died; waits up to 2 s, as its state may appear late."""
        for _ in range(20):
            for peer in self._peers:
                if peer.state() in ("", "Z", "X"):
                    return str(peer)
            time.sleep(0.1)
        return None

    # ---- the watching thread ----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        moved = before = time.monotonic()
        beat = -math.inf  # sends the first datagram at once, as a process is judged only after its first
        while not self._done.is_set():
            if beat > 0:
                self._listen()
            now = time.monotonic()
            if now - before > 10 * BEAT_SECONDS:
                # this process was stopped itself, perhaps with the whole job, so it cannot judge that time
                moved = now
                for peer in self._peers:
                    peer.heard = None if peer.heard is None else now
                    peer.report = {}
                self._children.clear()
            before = now
            if self._seen != (seen := (self._steps, self._ranks.calls)):
                self._seen, moved = seen, now
            if now - beat >= BEAT_SECONDS:
                beat = now
                waiting, where = self._main_thread()
                self._send({"waits": waiting, "still": now - moved, "in_step": self._in_step(), "where": where})
                self._judge(now, waiting and now - moved > self._limit())

    def _listen(self) -> None:
        if not self._peers:
            self._done.wait(BEAT_SECONDS)
            return
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            data, _ = self._socket.recvfrom(4096)
            heard = json.loads(data)
            if heard["token"] != self._token:
                return
            for peer in self._peers:
                if peer.rank == heard["rank"]:
                    peer.heard, peer.report = (None if heard.get("over") else time.monotonic()), heard

    def _send(self, report: dict[str, Any]) -> None:
        if not self._peers:
            return
        data = json.dumps({"token": self._token, "rank": self._rank, **report}).encode()
        for peer in self._peers:
            with suppress(OSError):
                self._socket.sendto(data, peer.address)

    def _in_step(self) -> bool:
        return self._steps >= FIRST_STEPS and not self._ranks.apart

    def _limit(self) -> float:
        durations = self._durations
        usual = statistics.median(durations) if len(durations) >= FIRST_STEPS else 0.0
        return max(self._patience, HUNG_STEPS * usual)

    def _main_thread(self) -> tuple[bool, str]:
        """Returns True if the main thread waits for other processes, and the line of code that it executes."""
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        waiting, where = self._ranks.waiting, ""
        while frame is not None:
            name = frame.f_code.co_filename
            waiting = waiting or any(part in name for part in _WAITING)
            where = where or f"{os.path.basename(name)} line {frame.f_lineno}"
            frame = frame.f_back
        return waiting, where

    def _judge(self, now: float, waited_enough: bool) -> None:
        for peer in self._peers:
            if peer.heard is not None and now - peer.heard > SILENT_SECONDS:
                state = peer.state()
                what = {"T": "is stopped (by a signal)", "": "has died", "Z": "has died"}.get(
                    state or "-", "sends no sign of life"
                )
                self._end(peer, f"{peer} {what} for {SILENT_SECONDS:.0f} s")
            report = peer.report
            stuck = report.get("in_step") and not report.get("waits") and report.get("still", 0) > self._limit()
            if stuck and waited_enough:
                self._end(peer, f"{peer} has hung for {report['still']:.0f} s at {report.get('where')}")
        for pid in _stopped_children():
            if now - self._children.setdefault(pid, now) > SILENT_SECONDS:
                self._alarm(f"data worker {pid} is stopped (by a signal) for {SILENT_SECONDS:.0f} s")

    def _end(self, peer: _Peer, why: str) -> None:
        # otherwise the launcher would wait another half a minute before it kills a stopped worker
        if peer.host == socket.gethostname() and _parent_of(peer.pid) == os.getppid():
            with suppress(OSError):
                os.kill(peer.pid, signal.SIGKILL)
        self._alarm(why)


def _own_address() -> str:
    """Returns the address at which the other processes reach this one."""
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):
        return "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect((os.environ.get("MASTER_ADDR", "127.0.0.1"), 9))  # sends nothing
        return probe.getsockname()[0]
    return "127.0.0.1"


def _fields(pid: int) -> list[str] | None:
    """Returns the fields of /proc/PID/stat after the name; empty for a process that is gone, None without /proc."""
    if not os.path.exists("/proc/self/stat"):
        return None
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _state_of(pid: int) -> str | None:
    fields = _fields(pid)
    return None if fields is None else "".join(fields[:1])


def _parent_of(pid: int) -> int:
    fields = _fields(pid)
    return int(fields[1]) if fields else -1


def _stopped_children() -> list[int]:
    """Returns the process ids of children that a signal has stopped."""
    children: list[int] = []
    with suppress(OSError, ValueError):
        for task in Path("/proc/self/task").iterdir():
            children += [int(pid) for pid in (task / "children").read_text().split()]
    return [pid for pid in children if _state_of(pid) == "T"]
