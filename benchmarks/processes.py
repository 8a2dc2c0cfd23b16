"""Compares one global batch on 1, 2 and 4 processes: the order of samples, and the losses of the first steps, by family.

    python benchmarks/processes.py --steps 20 --batch 16
    python benchmarks/processes.py --families prior --sharded

Trains small networks on the CPU by gloo, one thread each, in float32, without dropout, whose random numbers depend on the
process. Prints a Markdown table of losses and the largest difference from one process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from t2i.data import View, open_dataset
from t2i.data.loader import Loader, Position, RowLoader
from t2i.training import journal

WORLDS = (1, 2, 4)
LOSS = {"cgan": "d_loss"}  # the others: loss
COMMON = ("data.limit=256", "data.resolution=16", "log_steps=1", "validation_steps=100000", "validation_n=2", "seed=3",
          "mixed_precision=no", "device=cpu", "max_train_minutes=null", "lr_warmup_steps=2")  # fmt: skip
KEYS = {
    "vqvae": ("autoencoder={width: 16, width_limit: 32, grid: 4}", "quantizer={codebook_size: 32, dim: 8, warmup_steps: 1}"),
    "prior": ("model={width: 64, depth: 2, heads: 2, mlp_width: 96, dropout: 0.0}", "text={encoder: bow}", "order=random",
              "sampling.steps=3"),
    "cgan": ("generator={width: 8, width_limit: 32, w_dim: 32, z_dim: 16}", "text={encoder: bow}", "loss.negatives=4",
             "discriminator={width: 8, width_limit: 32, feature_dim: 32}", "guidance.encoder=none"),
    "cvae": ("model={width: 32, depth: 2, heads: 2, posterior_width: 16}", "text={encoder: bow}"),
}  # fmt: skip


def order(batch: int, steps: int) -> dict[int, tuple[list[int], list[int]]]:
    """Returns sample ids and rows in the order of training, joined over the processes of each global batch."""
    data = open_dataset("shapes-1", "train", View(16, limit=100))
    found = {}
    for world in WORLDS:
        loaders = [RowLoader(data, batch // world, 3, Position(0, rank, world)) for rank in range(world)]
        readers = [Loader(data, batch // world, 3, Position(0, rank, world)) for rank in range(world)]
        ids, rows = [], []
        for _ in range(steps):
            for loader, reader in zip(loaders, readers, strict=True):
                one, other = next(loader), next(reader)
                assert np.array_equal(one.sample_ids, other.sample_ids) and np.array_equal(one.rows, other.rows)
                ids += one.sample_ids.tolist()
                rows += one.rows.tolist()
        found[world] = ids, rows
    return found


def train(family: str, world: int, batch: int, steps: int, run: Path, *sets: str) -> None:
    settings = (*COMMON, *KEYS[family], f"train_batch_size={batch // world}", f"max_train_steps={steps}", *sets)
    words = ["train", family, "--config", f"{family}-tiny", "--data", "shapes-1", "--run-dir", str(run)]
    words += [word for value in settings for word in ("--set", value)]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "t2i.cli", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])


def losses(run: Path, family: str) -> list[float]:
    name = LOSS.get(family, "loss")
    return [record[name] for record in journal.read(run / "journal.jsonl") if name in record]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", default=list(KEYS), choices=list(KEYS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16, help="images of a step, over all processes")
    parser.add_argument("--sharded", action="store_true", help="several processes of a prior with sharding=full")
    options = parser.parse_args()
    orders = order(options.batch, options.steps)
    same = all(orders[world] == orders[1] for world in WORLDS)
    worlds, said = ", ".join(map(str, WORLDS)), "the same" if same else "NOT the same"
    print(f"order of {len(orders[1][0])} samples and rows on {worlds} processes: {said}\n", flush=True)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder) / "tokenizer"
        train("vqvae", 1, options.batch, 30, tokenizer)
        for family in options.families:
            for world in WORLDS:
                run = Path(folder) / f"{family}-{world}"
                needs = [f"tokenizer.path={json.dumps(str(tokenizer))}"] if family in ("prior", "cvae") else []
                needs += ["sharding=full"] if options.sharded and family == "prior" and world > 1 else []
                train(family, world, options.batch, options.steps, run, *needs)
                rows[family, world] = losses(run, family)
    shown = [step for step in (1, 2, 5, 10, 15, 20) if step <= options.steps]
    print(
        "| family, processes | "
        + " | ".join(f"step {step}" for step in shown)
        + " | largest difference to one process |"
    )
    print("|---" * (len(shown) + 2) + "|")
    for (family, world), values in rows.items():
        apart = max(abs(a - b) / max(abs(b), 1e-6) for a, b in zip(values, rows[family, 1], strict=True))
        print(f"| {family}, {world} | " + " | ".join(f"{values[step - 1]:.6f}" for step in shown) + f" | {apart:.1e} |")


if __name__ == "__main__":
    main()
