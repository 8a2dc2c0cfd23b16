"""Tests that results depend neither on the number of processes, nor on the batch, nor on a full disk.

python benchmarks/torture_order.py
python benchmarks/torture_order.py disk --share 0.1
"""

import os
import random
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np  # noqa: E402
import torture_runs  # noqa: E402
from torture_runs import SHORT, judged, outcome, undisturbed  # noqa: E402

from builders.forks import fork, wait  # noqa: E402
from builders.toy_run import config, digests, saved_steps, train, two_processes  # noqa: E402
from t2i import checkpoint  # noqa: E402
from t2i.data import View, open_dataset  # noqa: E402
from t2i.pipeline import TextToImagePipeline  # noqa: E402
from t2i.seeding import permutation  # noqa: E402
from t2i.training.run import Run  # noqa: E402

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"
IMAGES, BATCH = 50, 8


def order(folder: Path, rng: random.Random) -> str:
    """Continues a run with other numbers of processes, several times: each sample must occur once, at its place in the order."""
    run, seen = folder / "run", folder / "seen"
    seen.mkdir()
    steps = 0
    for _ in range(rng.randrange(2, 4)):
        two, steps = rng.random() < 0.5, steps + rng.randrange(1, 5)

        def note(running: Run) -> None:
            path = seen / f"{running.images_seen:06d}-{running.process_index}"
            path.write_text(" ".join(map(str, running._sample_ids)))

        def body(rank: int = 0, steps: int = steps, note: Callable[[Run], None] = note) -> None:
            train(run, config(**SHORT | {"max_train_steps": steps}), note)

        if set(two_processes(body) if two else [wait(fork(body))]) != {0}:
            return "EXIT"
    ids = [int(word) for path in sorted(seen.iterdir()) for word in path.read_text().split()]
    if ids != list(range(len(ids))) or len(ids) % BATCH:
        return f"ORDER {ids}"
    names = open_dataset("shapes-1", "train", View(32, limit=IMAGES)).ids
    shown = [names[int(permutation(config().seed, i // IMAGES, IMAGES)[i % IMAGES])] for i in ids[:IMAGES]]
    return "each sample once, in order" if len(set(shown)) == len(shown) else "SAMPLES TWICE"


def same(folder: Path, rng: random.Random) -> str:
    """Compares runs on one or two processes: those of one seed must end with the same bits, one of another seed must not."""
    seed, two = rng.randrange(10**6), rng.random() < 0.3
    for name, own in (("a", seed), ("b", seed), ("c", seed + 1)):
        body = lambda rank=0, n=name, s=own: train(folder / n, config(**SHORT | {"seed": s}))  # noqa: E731
        if set(two_processes(body) if two else [wait(fork(body))]) != {0}:
            return "EXIT"
    a, b, c = (digests(folder / name, 8) for name in "abc")
    return "same seed, same bits" if a == b and a != c else "OTHER BITS"


def batches(folder: Path, rng: random.Random) -> str:
    """Samples prompts with several batch sizes and beside other prompts: the images must have the same bits."""
    words = ["small", "large", "red", "blue", "green", "circle", "square", "star", "above", "left of", "é", "two", ","]
    prompts = [" ".join(rng.choices(words, k=rng.randrange(1, 12))) for _ in range(10)]
    name = rng.choice(["cgan", "saved"])

    def body() -> None:
        pipe = TextToImagePipeline.from_pretrained(GOLDEN / name)
        whole = pipe(prompts, seed=3, output_type="uint8", batch_size=8).images
        for size in (1, 4):
            for one, other in zip(
                whole, pipe(prompts, seed=3, output_type="uint8", batch_size=size).images, strict=True
            ):
                if not np.array_equal(one, other):
                    sys.exit(3)
        alone = pipe(prompts[4], seed=3, output_type="uint8").images[0]
        sys.exit(0 if np.array_equal(alone, whole[4]) else 4)

    status, said = outcome(body, folder, 120)
    return {0: "same at any batch size", 3: "BATCH CHANGES IT", 4: "COMPANY CHANGES IT"}.get(status) or f"EXIT {said}"


def full_disk(folder: Path, rng: random.Random) -> str:
    """Lets a write fail as on a full disk: there must be one line, intact older checkpoints, and an exact continuation."""
    run, most = folder / "run", rng.choice([rng.randrange(0, 2_000), rng.randrange(0, 30_000)])
    first = rng.random() < 0.7

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        log = os.fstat(2).st_size if first else 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (most + log, most + log))
        sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # the console is no file of the run
        train(run, config(**SHORT))

    if first:
        status, said = outcome(lambda: train(run, config(**SHORT | {"max_train_steps": 3})), folder)
        if status:
            return judged(status, said, False)
    said_in: list[str] = []

    def told() -> None:
        from t2i.errors import InputError

        try:
            limited()
        except InputError as error:
            os.write(2, f"{error}".encode()[:1])  # the log itself may be over the limit
            raise SystemExit(2 if "\n" not in str(error) else 9) from None

    status, said = outcome(told, folder)
    said_in.append(said)
    kept = saved_steps(run) if (run / "checkpoints").exists() else []
    if "Traceback" in said or status not in (0, 2):
        return f"EXIT {status} {said[-200:]!r}"
    if first and not any(checkpoint.verify(run / "checkpoints" / f"step-{step:08d}") is None for step in kept):
        return "LOST"
    status_then, said = outcome(lambda: train(run, config(**SHORT)), folder)
    found = judged(status_then, said, status_then == 0 and digests(run, 8) == undisturbed(folder.parent))
    return (
        f"{found}, after {'one line' if status else 'no failure'}" if found == "resumed exactly" else f"{found.upper()}"
    )


PROOFS = {
    "order": ("P4", 45, order),
    "same": ("P5", 30, same),
    "batches": ("P5", 20, batches),
    "disk": ("P11", 200, full_disk),
}

if __name__ == "__main__":
    sys.exit(torture_runs.main(PROOFS))
