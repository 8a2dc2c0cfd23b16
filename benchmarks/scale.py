"""Calculates time and cost of training on 1, 8 and 64 GPUs: the tables of docs/scale.md.

    python benchmarks/scale.py

FLOPs are counted by torch's FlopCounterMode: those of a prior on the meta device, those of a tokenizer in real steps on the
CPU. All other numbers are assumptions that are named here; nothing in the tables was measured on a GPU.
"""

import tempfile
from pathlib import Path

import gpu
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from t2i.config.load import load
from t2i.prior.config import Config
from t2i.prior.memory import TextSizes, memory
from t2i.prior.step import draw_micro
from t2i.prior.transformer import Grid, Prior
from t2i.text import TextFeatures

PEAK = 989e12  # bf16 FLOP/s of an H100 SXM without sparsity, as its maker says
USED = {"prior": 0.35, "vqvae": 0.25}  # share of the peak that training reaches
NEAR, FAR = (
    300e9,
    40e9,
)  # bytes/s of a GPU to the others of its machine (NVLink) and of other machines (400 Gb/s InfiniBand)
PRICE = 2.5  # US dollars of a GPU hour
GRID, TEXT = Grid(16, 16, 1, 16384), TextSizes(512, 512, 77)
DATA = {"COCO": (118_000, 200), "CC3M": (3_300_000, 20), "CC12M": (12_400_000, 8)}  # images, epochs
WORLDS = (1, 8, 64)
BATCH = 256  # images of a step on all GPUs together, on 64: 1024


def prior_flops(config: Config) -> float:
    """Returns the FLOPs per image, forward and backward."""
    batch = 2
    with torch.device("meta"):
        model = Prior(config.model_copy(update={"activation_checkpointing": False}), GRID, *TEXT)
    text = TextFeatures(
        torch.empty(batch, TEXT.max_tokens, TEXT.token_dim), torch.ones(batch, TEXT.max_tokens, dtype=torch.bool),
        torch.empty(batch, TEXT.pooled_dim),
    )  # fmt: skip
    codes = torch.zeros(batch, GRID.slots, dtype=torch.int64)
    micro = draw_micro(config, codes, text, np.arange(batch), 0)
    order = None if micro.order is None else micro.order._replace(permutation_BS=micro.order.permutation_BS.to("meta"))
    draws = type(micro.draws)(*(one.to("meta") for one in micro.draws))
    with FlopCounterMode(display=False) as counter:
        model(codes.to("meta"), TextFeatures(*(one.to("meta") for one in text)), order, draws).loss.backward()
    return counter.get_total_flops() / batch


def tokenizer_flops() -> float:
    """Returns the FLOPs per image of `vqvae-base` and its discriminator, without LPIPS: three steps on the CPU minus one."""
    counted = []
    with tempfile.TemporaryDirectory() as folder:
        for steps in (1, 3):
            sets = [
                "data.limit=128", "validation_n=2", "validation_steps=100000", "train_batch_size=1", "loss.lpips=0",
                "gradient_accumulation_steps=1", f"max_train_steps={steps}", "loss.adversarial_start=1", "device=cpu",
                "dataloader_num_workers=0", "mixed_precision=no",
            ]  # fmt: skip
            with FlopCounterMode(display=False) as counter:
                gpu.train("vqvae", "base", Path(folder) / str(steps), sets, rehearse=False)
            counted.append(counter.get_total_flops())
    return (counted[1] - counted[0]) / 2


def step_seconds(flops: float, parameters: int, world: int, images: int, used: float, sharded: bool) -> float:
    """Returns the seconds of a step: the longer of computation and communication, which overlap."""
    products = flops * images / world / (PEAK * used)
    speed = NEAR if world <= 8 else FAR
    share = (world - 1) / world
    # gradients in float32: reduced and spread again; or gathered twice in bf16 and reduced once
    moved = (2 * 2 + 4) * parameters * share if sharded else 2 * 4 * parameters * share
    return max(products, moved / speed)


def hours(text: str, flops: float, parameters: int, used: float, sharded: bool, images: int, epochs: int) -> str:
    cells = []
    for world in WORLDS:
        batch = 4 * BATCH if world == 64 else BATCH
        seconds = step_seconds(flops, parameters, world, batch, used, sharded and world > 1) * images * epochs / batch
        cells.append(f"{seconds / 3600:,.3g} h, ${seconds / 3600 * world * PRICE:,.0f}")
    return f"| {text} | {images * epochs / 1e6:,.0f} M | " + " | ".join(cells) + " |"


def main() -> None:
    rows, sizes = [], ["| config | parameters | GFLOP an image | 1 GPU | 8 GPUs | 8 GPUs, sharded |", "|---" * 6 + "|"]
    for name in ("prior-base", "prior-large", "prior-xl"):
        config = load(Config, name, [])
        flops = prior_flops(config)
        again = 4 / 3 if config.activation_checkpointing else 1.0
        cells = []
        for world, kind in ((1, "none"), (8, "none"), (8, "full")):
            found = memory(config.model_copy(update={"sharding": kind}), GRID, TEXT, world, True)
            cells.append(f"{found.total / 1e9:.1f} GB")
        sizes.append(f"| `{name}` | {found.parameters / 1e6:,.0f} M | {flops / 1e9:,.0f} | " + " | ".join(cells) + " |")
        for data, (images, epochs) in DATA.items():
            what = f"`{name}`, {data}, {epochs} epochs"
            sharded = config.sharding == "full"
            rows.append(hours(what, flops * again, found.parameters, USED["prior"], sharded, images, epochs))
    tokenizer = tokenizer_flops()
    sizes.append(f"| `vqvae-base` |  | {tokenizer / 1e9:,.0f} | not estimated | | |")
    for data, (images, epochs) in {"COCO": (118_000, 40), "CC3M": (3_300_000, 3), "CC12M": (12_400_000, 1)}.items():
        rows.append(
            hours(f"`vqvae-base`, {data}, {epochs} epochs", tokenizer, 70_000_000, USED["vqvae"], False, images, epochs)
        )
    print("\n".join(sizes))
    print("\n| what | images seen | 1 GPU | 8 GPUs | 64 GPUs |\n|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
