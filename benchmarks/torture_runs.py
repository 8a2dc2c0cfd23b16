"""Tests that a training run survives kills, damage, signals, broken steps, changed data and odd launches.

    python benchmarks/torture_runs.py                 # everything: hours
    python benchmarks/torture_runs.py kills damage --share 0.1

Each trial is seeded and runs in a forked child on a tiny run. A trial fails if a run does not start again, silently continues
with other weights than an undisturbed one, hangs, or ends with a traceback.
"""

import argparse
import contextlib
import io
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from builders.forks import fork, wait  # noqa: E402
from builders.small_settings import ALIGN, GAN, SMALL, VQVAE  # noqa: E402
from builders.toy_run import config, digests, saved_steps, train, two_processes, warm_up  # noqa: E402
from t2i import checkpoint  # noqa: E402
from t2i.cli import app  # noqa: E402
from t2i.data import View, open_dataset  # noqa: E402
from t2i.errors import InputError  # noqa: E402
from t2i.training import directory as papers  # noqa: E402
from t2i.training import journal  # noqa: E402
from t2i.training.run import RESUME_ME, Run  # noqa: E402

GOOD = frozenset(
    {
        "resumed exactly",
        "refused in one line",
        "saved and resumed",
        "ended and named",
        "rolled back",
        "went back and said so",
    }
)
Trial = Callable[[Path, random.Random], str]


def outcome(action: Callable[[], Any], folder: Path, seconds: float = 60.0) -> tuple[int, str]:
    """Returns (exit status, terminal output) of a child; the status is -1000 if it hangs."""
    log = folder / "stderr"

    def body() -> None:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
        try:
            action()
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None

    try:
        status = wait(fork(body), seconds)
    except AssertionError:
        status = -1000
    return status, log.read_text() if log.exists() else ""


def judged(status: int, said: str, same: bool) -> str:
    """Returns the outcome of a resumption."""
    if status == -1000:
        return "HUNG"
    if "Traceback" in said:
        return "TRACEBACK"
    if status == 2 and sum(line.startswith("error: ") for line in said.splitlines()) == 1:
        return "refused in one line"
    if status != 0:
        return f"EXIT {status}"
    return "resumed exactly" if same else "SILENT"


# ---- kills ----------------------------------------------------------------------------------------------------------

SHORT = {"max_train_steps": 8, "checkpointing_steps": 2, "checkpoints_total_limit": 2, "log_steps": 1}
POINTS = [
    (checkpoint, "_write"),
    (checkpoint, "flush"),
    (checkpoint, "_remove_leftovers"),
    (checkpoint, "verify"),
    (checkpoint, "_read_manifest"),
    (os, "rename"),
    (os, "replace"),
    (shutil, "rmtree"),
    (papers, "write_text"),
    (papers, "describe"),
    (journal.Journal, "write"),
    (journal.Journal, "truncate"),
]


def undisturbed(root: Path) -> dict[str, str]:
    """Returns the digests of a run without any disturbance."""
    if not (root / "whole").exists():
        assert wait(fork(lambda: train(root / "whole", config(**SHORT)))) == 0
    return digests(root / "whole", SHORT["max_train_steps"])


def kill(folder: Path, rng: random.Random) -> str:
    """Kills a run one to four times, at a call of one of POINTS or at a random moment, and continues it."""
    run = folder / "run"

    def killed() -> None:
        if rng.random() < 0.5:
            place, name = rng.choice(POINTS)
            real, left, after = getattr(place, name), [rng.randrange(12)], rng.random() < 0.5

            def dies(*words: Any, **named: Any) -> Any:
                left[0] -= 1
                if left[0] < 0 and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                found = real(*words, **named)
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return found

            setattr(place, name, dies)
        else:
            victim, delay = os.getpid(), rng.uniform(0.0, 0.5)
            if os.fork() == 0:
                time.sleep(delay)
                with contextlib.suppress(OSError):
                    os.kill(victim, signal.SIGKILL)
                os._exit(0)
        train(run, config(**SHORT))

    happened = 0
    for _ in range(rng.randrange(1, 5)):
        rng.random()
        status, said = outcome(killed, folder)
        happened += status == -signal.SIGKILL
        if status not in (0, -signal.SIGKILL):
            return judged(status, said, False) + " AFTER A KILL"
    status, said = outcome(lambda: train(run, config(**SHORT)), folder)
    found = judged(status, said, status == 0 and digests(run, 8) == undisturbed(folder.parent))
    return "no kill" if found in GOOD and not happened else found if found != "refused in one line" else "UNRESUMABLE"


# ---- damage ---------------------------------------------------------------------------------------------------------

PRIOR = [
    *(
        "model={width: 16, depth: 2, heads: 2, mlp_width: 16}",
        "text={encoder: bow}",
        "order=random",
        "sampling.steps=3",
    ),
    "validation_steps=1000",
]
KEYS = {"cgan": [*SMALL, *GAN], "align": [*SMALL, *ALIGN], "vqvae": [*SMALL, *VQVAE], "prior": [*SMALL, *PRIOR]}


def program(family: str, run: Path, root: Path, *sets: str, data: str = "shapes-1") -> int:
    """Trains a tiny run of a family as a user does."""
    if family == "prior":
        sets = (f"tokenizer.path={json.dumps(str(root / 'base-vqvae'))}", *sets)
    words = ["train", family, "--config", f"{family}-tiny", "--data", data, "--run-dir", str(run)]
    return app.main([*words, *(word for value in (*KEYS[family], *sets) for word in ("--set", value))])


STEPS, FINAL = ("checkpointing_steps=2", "max_train_steps=4"), ("checkpointing_steps=2", "max_train_steps=5")


def base_run(family: str, root: Path) -> tuple[Path, dict[str, str]]:
    """Returns a run of four steps, and the digests after its fifth step."""
    base, whole = root / f"base-{family}", root / f"whole-{family}"
    if family == "prior":
        base_run("vqvae", root)
    if not whole.exists():
        for sets in (STEPS, FINAL):
            status, said = outcome(lambda s=sets: sys.exit(program(family, base, root, *s)), root, 200)
            assert status == 0, said
            if sets == STEPS:
                shutil.copytree(base, root / "kept", symlinks=True)
        base.rename(whole)
        (root / "kept").rename(base)
    return base, digests(whole, 5)


def damage_file(path: Path, others: list[Path], rng: random.Random) -> str:
    """Damages one file in one of six ways; returns a description."""
    data = bytearray(path.read_bytes())
    way = rng.choice(["bit", "zeros", "cut", "missing", "swapped", "text"])
    if way == "missing" or not data:
        path.unlink()
        return "missing"
    at = rng.randrange(len(data))
    if way == "bit":
        data[at] ^= 1 << rng.randrange(8)
    elif way == "zeros":
        data[at : at + 4096] = bytes(len(data[at : at + 4096]))
    elif way == "cut":
        data = data[:at]
    elif way == "swapped":
        data = bytearray(rng.choice(others).read_bytes())
    else:
        data[at : at + 1] = str(rng.randrange(10)).encode()
    path.write_bytes(data)
    return way


def damage(folder: Path, rng: random.Random) -> str:
    """Damages one file of a run, which must then continue exactly, from this or an older checkpoint, or be refused."""
    family = rng.choice(["cgan", "cgan", "align", "vqvae", "prior"])
    base, expected = base_run(family, folder.parent)
    run = folder / "run"
    shutil.copytree(base, run)
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.name != ".lock")
    parts = sorted({path.relative_to(run).parts[0] for path in files})
    chosen = rng.choice(parts)  # first the kind, or checkpoints would be nearly all
    victim = rng.choice([path for path in files if path.relative_to(run).parts[0] == chosen])
    before = victim.read_bytes()
    damage_file(victim, files, rng)
    if victim.exists() and victim.read_bytes() == before:
        return "no damage"
    status, said = outcome(lambda: sys.exit(program(family, run, folder.parent, *FINAL)), folder, 120)
    found = judged(status, said, status == 0 and digests(run, 5) == expected)
    if found == "SILENT" and "is damaged and skipped" in said:
        # steps 3 and 4 are trained again with the learning rates of a run of five steps
        found = "went back and said so"
    return found if found in GOOD else f"{found} {family} {victim.relative_to(run)}"


# ---- data that changes ----------------------------------------------------------------------------------------------


def write_folder(root: Path, count: int = 30) -> Path:
    root.mkdir(parents=True)
    colors = np.random.default_rng(0).integers(0, 255, (count, 16, 16, 3), np.uint8)
    rows = [json.dumps({"file_name": f"{i:03d}.png", "text": f"a thing of kind {i % 9}"}) for i in range(count)]
    for i, pixels in enumerate(colors):
        Image.fromarray(pixels).save(root / f"{i:03d}.png")
    (root / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return root


def change_data(root: Path, train_ids: list[str], rng: random.Random) -> None:
    """Changes one training image, its caption or its name."""
    name = rng.choice(train_ids)
    path, table = root / name, root / "metadata.jsonl"
    way = rng.choice(["pixels", "caption", "another caption", "removed", "renamed", "touched pixels"])
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    if way in ("pixels", "touched pixels"):
        status = path.stat()
        with Image.open(path) as image:
            pixels = np.asarray(image).copy()
        pixels[rng.randrange(16), rng.randrange(16)] ^= 64
        Image.fromarray(pixels).save(path)
        if way == "touched pixels":
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif way == "removed":
        path.unlink()
    else:
        for row in rows:
            if row["file_name"] == name:
                if way == "caption":
                    row["text"] = row["text"].replace("thing", "stone")
                elif way == "renamed":
                    row["file_name"] = f"x{name}"
        if way == "another caption":
            rows.append({"file_name": name, "text": "something else"})
        if way == "renamed":
            path.rename(root / f"x{name}")
    table.write_text("\n".join(map(json.dumps, rows)) + "\n")


def changed_data(folder: Path, rng: random.Random) -> str:
    """Changes data between a stop and the resumption, which must be refused; nothing in the run may be overwritten."""
    root, run = write_folder(folder / "data"), folder / "run"
    status, said = outcome(lambda: train(run, config(**SHORT), data=open_dataset(str(root), "train", View(32))), folder)
    if status:
        return judged(status, said, False)
    train_ids = [str(name) for name in open_dataset(str(root), "train", View(32)).ids]
    change_data(root, train_ids, rng)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    longer = config(**SHORT | {"max_train_steps": 9})
    status, said = outcome(lambda: train(run, longer, data=open_dataset(str(root), "train", View(32))), folder)
    found = judged(status, said, False)
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    return found if found != "refused in one line" or before == after else "REFUSED AND OVERWRITTEN"


# ---- resumes, signals, broken steps, several processes --------------------------------------------------------------


def stop_at(steps: set[int], number: int) -> Callable[[Run], None]:
    def each_step(run: Run) -> None:
        if run.step in steps:
            os.kill(os.getpid(), number)

    return each_step


def resume(folder: Path, rng: random.Random) -> str:
    """Stops a run on one or two processes twice; it must end with the bits of an uninterrupted one."""
    two = rng.random() < 0.5
    steps = set(rng.sample(range(1, 8), 2))
    whole, run = folder.parent / f"resume-{two}", folder / "run"

    def runs(directory: Path, each_step: Callable[[Run], None] = lambda run: None) -> list[int]:
        body = lambda rank=0: train(directory, config(**SHORT), each_step)  # noqa: E731
        return two_processes(body) if two else [wait(fork(body))]

    if not whole.exists():
        runs(whole)
    for _ in range(3):
        status = runs(run, stop_at(steps, signal.SIGTERM))
        if set(status) == {0}:
            return "resumed exactly" if digests(run, 8) == digests(whole, 8) else "SILENT"
        if set(status) != {RESUME_ME}:
            return f"EXIT {status}"
    return "NEVER DONE"


def signalled(folder: Path, rng: random.Random) -> str:
    """Sends a signal at a random moment: the run must save within a step, and then end with the bits of an undisturbed one."""
    number = rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
    run, delay = folder / "run", rng.uniform(0.0, 0.4)

    def body() -> None:
        victim = os.getpid()
        started = []

        def first(running: Run) -> None:
            if not started:
                started.append(1)
                if os.fork() == 0:
                    time.sleep(delay)
                    os.kill(victim, number)
                    os._exit(0)
            time.sleep(0.03)

        train(run, config(**SHORT | {"max_train_steps": 30, "checkpointing_steps": 100}), first)

    status, said = outcome(body, folder)
    if status != RESUME_ME:
        return "signal came too late" if status == 0 else judged(status, said, False)
    if not (run / "STOPPED").exists() or "Traceback" in said:
        return "NOT SAID"
    (step,) = saved_steps(run)
    status, said = outcome(lambda: train(run, config(**SHORT | {"max_train_steps": step + 1})), folder)
    return "saved and resumed" if status == 0 and not (run / "STOPPED").exists() else judged(status, said, False)


def broken_step(folder: Path, rng: random.Random) -> str:
    """Puts NaN or infinity into losses, on one rank or all, or into a weight: no checkpoint may hold one."""
    run, two, in_weight = folder / "run", rng.random() < 0.3, rng.random() < 0.5
    first, length = rng.randrange(0, 7), rng.choice([1, 2, 4, 20])
    value = rng.choice([math.nan, math.inf, -math.inf])

    def poison(running: Run) -> None:
        if in_weight and running.step == first + 1:
            parts: Any = running.parts._parts
            name = rng.choice(["generator", "critic"])
            tensor = next(iter(running.accelerator.unwrap_model(parts[name]).parameters()))
            tensor.data[(0,) * tensor.ndim] = value

    spoilt = (lambda step: False) if in_weight else (lambda step: first <= step < first + length)
    body = lambda rank=0: train(run, config(**SHORT), poison, spoilt=spoilt)  # noqa: E731

    def quiet(rank: int = 0) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                body()
            except InputError:
                raise SystemExit(2) from None

    status = two_processes(quiet) if two else [outcome(quiet, folder)[0]]
    for step in saved_steps(run) if (run / "checkpoints").exists() else []:
        state, _ = checkpoint.load(run / "checkpoints" / f"step-{step:08d}")
        if not all(t.isfinite().all() for part in state.values() for t in part.values() if t.is_floating_point()):
            return "SAVED"
    return {0: "rolled back", 2: "refused in one line"}.get(status[0], f"EXIT {status}")


def worker(folder: Path, rng: random.Random) -> str:
    """Kills, stops or blocks one of two processes: the other must end and name it."""
    way, victim, at = rng.choice(["kill", "stop", "hang"]), rng.randrange(2), rng.randrange(4, 9)
    run = folder / "run"

    def strike(running: Run) -> None:
        if running.step == at and running.process_index == victim:
            (folder / "began").touch()
            if way == "hang":
                time.sleep(3600)
            os.kill(os.getpid(), signal.SIGKILL if way == "kill" else signal.SIGSTOP)

    status, said = outcome(
        lambda: sys.exit(
            max(two_processes(lambda rank: train(run, config(**SHORT | {"max_train_steps": 50}), strike)))
        ),
        folder,
        90,
    )
    took = time.time() - (folder / "began").stat().st_mtime
    if took > 60 or status == -1000:
        return f"HUNG {way}"
    if "Traceback" in said:
        return "TRACEBACK"
    named = f"rank {victim} (pid" in said and status == RESUME_ME
    return "ended and named" if named else f"NOT NAMED {way} {status}"


def race(folder: Path, rng: random.Random) -> str:
    """Starts several runs at once in one directory: one must train, the others must be refused."""
    run = folder / "run"
    pids = [fork(lambda: _start(run)) for _ in range(rng.randrange(2, 5))]
    found = Counter(wait(pid) for pid in pids)
    exact = (run / "checkpoints").exists() and digests(run, 8) == undisturbed(folder.parent)
    return "resumed exactly" if exact and set(found) <= {0, 2} else f"RACE {dict(found)}"


def _start(run: Path) -> None:
    sys.stderr = io.StringIO()
    try:
        train(run, config(**SHORT))
    except InputError:
        raise SystemExit(2) from None


# name -> (promise, trials in full, trial)
Proofs = Mapping[str, tuple[str, int, Trial]]
PROOFS: Proofs = {
    "kills": ("P1", 500, kill),
    "damage": ("P2", 1000, damage),
    "resumes": ("P3", 60, resume),
    "signals": ("P6, P22", 120, signalled),
    "workers": ("P7", 50, worker),
    "steps": ("P8", 300, broken_step),
    "races": ("P12", 50, race),
    "data": ("P21", 100, changed_data),
}


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        os.environ["T2I_CACHE"] = str(Path(name) / "cache")
        yield Path(name)


def failed(outcome: str) -> bool:
    """Returns True for a failure: its outcome begins with a word in capitals."""
    return outcome.split()[0].isupper()


def prove(name: str, trials: int, root: Path, seed: int = 0, proofs: Proofs | None = None) -> Counter[str]:
    """Runs the trials of one test; returns the count of each outcome."""
    trial, found = (proofs or PROOFS)[name][2], Counter[str]()
    for number in range(trials):
        folder = root / f"{name}-{number}"
        folder.mkdir()
        came = trial(folder, random.Random(f"{seed} {name} {number}"))
        found[came] += 1
        if failed(came):
            print(f"    trial {number}: {came}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
    return found


def main(proofs: Proofs) -> int:
    words = sys.modules["__main__"].__doc__
    parser = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="PROOF", help="proofs; default: all")
    parser.add_argument("--share", type=float, default=1.0, help="of the full number of trials")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    warm_up()
    bad = 0
    with workspace() as root:
        for name in asked.names or proofs:
            promise, full, _ = proofs[name]
            started = time.monotonic()
            found = prove(name, max(1, round(full * asked.share)), root, asked.seed, proofs)
            wrong = sum(count for what, count in found.items() if failed(what))
            bad += wrong
            seconds = time.monotonic() - started
            print(
                f"{promise} {name}: {sum(found.values())} trials, {wrong} failed, {seconds:.0f} s",
                flush=True,
            )
            print(f"    {dict(found)}", flush=True)
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main(PROOFS))
