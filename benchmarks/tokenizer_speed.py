"""Compares image tokenizers after equal CPU seconds with those of dalle-pytorch, diffusers and muse, as markdown tables.

    pip install t2i[bench] && pip install --no-deps dalle-pytorch
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/tokenizer_speed.py

All map 64 px to 8 x 8 tokens of 4,096 codes, see the same images in the same order, and are scored by the PSNR of held-out
images after quantisation. All train in one process and one thread, in float32, in alternating slices of CPU time, so that
slow minutes of the machine affect every side; scoring is not counted. Ours is `vqvae-shapes64` with its own losses and
learning rate. The others have the optimizer, learning rate and pixel loss of their training scripts, without perceptual and
adversarial terms, which need weights from elsewhere: once as wide as published, once narrowed to about our number of
parameters.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from prior_speed import stub_dalle
from torch import Tensor, nn

from t2i.config.load import load
from t2i.data import View, open_dataset
from t2i.hardware import prepare_cpu
from t2i.images import ImageArray, to_model, to_uint8
from t2i.metrics.reconstruction import psnr
from t2i.training.optimization import clip_gradients, learning_rate
from t2i.vqvae.autoencoder import Autoencoder
from t2i.vqvae.config import Config
from t2i.vqvae.step import Judges, autoencoder_loss

SIDE, CODES = 64, 4096
MARKS = 8  # scores over the training of each side; a multiple of 4
HELD_OUT = 32  # images
PEERS_BATCH = 8  # as in train_vae.py; larger ones would leave large models few steps


class Tokenizer(NamedTuple):
    """One side: `step` trains on images in [-1, 1] after a share of the time, `decoded` encodes and decodes images."""

    name: str
    model: nn.Module
    batch: int  # images of a step
    step: Callable[[Tensor, float], None]
    decoded: Callable[[Tensor], Tensor]  # [-1, 1] -> [-1, 1]


# ---- ours ----------------------------------------------------------------------------------------------------------


def ours() -> Tokenizer:
    config = load(Config, "vqvae-shapes64")
    model = Autoencoder(config)
    optimizer = torch.optim.Adam(model.parameters(), config.learning_rate, betas=(0.9, 0.99))
    steps = 0

    def step(real: Tensor, share: float) -> None:
        nonlocal steps
        total = int(steps / max(share, 1e-3)) + 1  # the cosine ends with the time
        rate = learning_rate(steps, total, config.learning_rate, config.lr_warmup_steps, 0.05)
        for group in optimizer.param_groups:
            group["lr"] = rate
        output = model(real)
        loss, _ = autoencoder_loss(output, real, Judges(None, None), model.decoder.last_weight, config.loss, steps)
        loss.backward()
        clip_gradients(model)
        optimizer.step()
        model.codes.observe(output.latents_BCHW.detach(), output.indices_BLQ)
        optimizer.zero_grad()
        steps += 1

    return Tokenizer("t2i", model, config.train_batch_size, step, lambda x: model.decode(model.encode(x)))


# ---- peers ---------------------------------------------------------------------------------------------------------


def trained(model: nn.Module, rate: float, loss: Callable[[Tensor], Tensor]) -> Callable[[Tensor, float], None]:
    """Returns a function that takes one step of Adam."""
    optimizer = torch.optim.Adam(model.parameters(), rate)

    def step(real: Tensor, share: float) -> None:
        del share  # the rate is constant, as in the peers' scripts
        loss(real).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def diffusers_vq(name: str, widths: tuple[int, ...]) -> Tokenizer:
    """Returns a VQGAN without attention, with the learning rate of examples/vqgan."""
    from diffusers import VQModel

    count = len(widths)
    model = VQModel(
        down_block_types=("DownEncoderBlock2D",) * count,
        up_block_types=("UpDecoderBlock2D",) * count,
        block_out_channels=widths,
        layers_per_block=2,
        norm_num_groups=min(32, widths[0] // 2),
        num_vq_embeddings=CODES,
        latent_channels=4,
        mid_block_add_attention=False,
    )

    def loss(real: Tensor) -> Tensor:
        output = model(real)
        return F.mse_loss(output.sample, real) + output.commit_loss.mean()

    return Tokenizer(name, model, PEERS_BATCH, trained(model, 1e-4, loss), lambda x: model(x).sample)


def dalle_vae(name: str, width: int, codebook_dim: int) -> Tokenizer:
    """Returns a discrete VAE, with learning rate, temperature and residual blocks of train_vae.py."""
    stub_dalle()
    from dalle_pytorch.dalle_pytorch import DiscreteVAE

    model = DiscreteVAE(
        image_size=SIDE,
        num_layers=3,
        num_tokens=CODES,
        codebook_dim=codebook_dim,
        hidden_dim=width,
        num_resnet_blocks=2,
        temperature=1.0,
    )

    def loss(real: Tensor) -> Tensor:
        return model((real + 1) / 2, return_loss=True)

    def decoded(x: Tensor) -> Tensor:
        return model.decode(model.get_codebook_indices((x + 1) / 2))

    return Tokenizer(name, model, PEERS_BATCH, trained(model, 1e-3, loss), decoded)


def muse_vae(name: str, width: int) -> Tokenizer:
    """Returns a VQGAN with lookup-free codes, with the learning rate of its trainer."""
    from muse_maskgit_pytorch.vqgan_vae import VQGanVAE

    model = VQGanVAE(dim=width, layers=3, codebook_size=CODES, use_vgg_and_gan=False)

    def loss(real: Tensor) -> Tensor:
        latents, _, auxiliary = model.encode(x := (real + 1) / 2)
        return F.l1_loss(model.decode(latents), x) + auxiliary

    return Tokenizer(name, model, PEERS_BATCH, trained(model, 3e-4, loss), lambda x: model((x + 1) / 2) * 2 - 1)


SIDES: dict[str, Callable[[str], Tokenizer]] = {
    "t2i": lambda name: ours(),
    "diffusers VQModel": lambda name: diffusers_vq(name, (64, 128, 128, 256)),
    "dalle-pytorch": lambda name: dalle_vae(name, 256, 512),
    "muse": lambda name: muse_vae(name, 64),
    "diffusers VQModel, narrow": lambda name: diffusers_vq(name, (16, 16, 32, 48)),
    "dalle-pytorch, narrow": lambda name: dalle_vae(name, 40, 32),
    "muse, narrow": lambda name: muse_vae(name, 16),
}


# ---- measuring -----------------------------------------------------------------------------------------------------


class Course(NamedTuple):
    """The scores of one side over time."""

    seconds: list[float]  # CPU seconds of training at each score
    scores: list[float]  # PSNR in dB
    images: int  # seen

    def reached(self, score: float) -> float | None:
        """Returns the CPU seconds after which scores reach `score`, interpolated linearly; None: never."""
        before = (0.0, 0.0)
        for t, found in zip(self.seconds, self.scores, strict=True):
            if found >= score:
                share = (score - before[1]) / (found - before[1]) if before[0] else 1.0
                return before[0] + share * (t - before[0])
            before = (t, found)
        return None


@torch.no_grad()
def score(side: Tokenizer, held_out: ImageArray) -> float:
    side.model.eval()
    parts = [
        to_uint8(side.decoded(to_model(held_out[i : i + PEERS_BATCH]))) for i in range(0, len(held_out), PEERS_BATCH)
    ]
    side.model.train()
    return float(psnr(np.concatenate(parts), held_out).mean())


def train(sides: list[Tokenizer], images: ImageArray, held_out: ImageArray, seconds: float) -> list[Course]:
    """Trains all sides in turn, up to one mark after the other."""
    used, seen = [0.0] * len(sides), [0] * len(sides)
    courses = [([], []) for _ in sides]
    for mark in range(1, MARKS + 1):
        for i, side in enumerate(sides):
            while used[i] < seconds * mark / MARKS:
                start = seen[i] % (len(images) - side.batch + 1)
                before = time.process_time()
                side.step(to_model(images[start : start + side.batch]), used[i] / seconds)
                used[i] += time.process_time() - before
                seen[i] += side.batch
            courses[i][0].append(used[i])
            courses[i][1].append(score(side, held_out))
            print(f"{side.name}: {used[i]:.0f} s, {courses[i][1][-1]:.2f} dB", file=sys.stderr, flush=True)
    return [Course(*course, count) for course, count in zip(courses, seen, strict=True)]


def report(sides: list[Tokenizer], courses: list[Course]) -> None:
    own = courses[0]
    print("\n| tokenizer | parameters, M | images seen | a CPU second | PSNR at 1/4 of the time | at 1/2 | at the end "
          "| ours reaches that | in so much of the time |\n|" + "---|" * 9)  # fmt: skip
    for side, course in zip(sides, courses, strict=True):
        size = sum(p.numel() for p in side.model.parameters()) / 1e6
        quarter, half = (course.scores[MARKS // part - 1] for part in (4, 2))
        then = own.reached(course.scores[-1])
        share = ("never", "") if then is None else (f"after {then:.0f} s", f"{then / course.seconds[-1]:.2f}")
        print(f"| {side.name} | {size:.2f} | {course.images:,} | {course.images / course.seconds[-1]:.1f} | {quarter:.2f} "
              f"| {half:.2f} | {course.scores[-1]:.2f} | {' | '.join(share)} |")  # fmt: skip
    print("\n| CPU seconds | " + " | ".join(side.name for side in sides) + " |\n|" + "---|" * (len(sides) + 1))
    for mark in range(MARKS):
        row = " | ".join(f"{course.scores[mark]:.2f}" for course in courses)
        print(f"| {own.seconds[mark]:.0f} | {row} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="CPU seconds of training of each side")
    parser.add_argument("--data", default="shapes-3", help="address")
    parser.add_argument("--images", type=int, default=4000, help="images of the training")
    parser.add_argument("--only", nargs="+", choices=list(SIDES), default=list(SIDES))
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    prepare_cpu()
    torch.set_num_threads(1)
    images = open_dataset(given.data, "train", View(SIDE, limit=given.images)).images(range(given.images))
    held_out = open_dataset(given.data, "val", View(SIDE, limit=HELD_OUT)).images(range(HELD_OUT))
    names = [name for name in SIDES if name in given.only or name == "t2i"]
    if any(name.startswith("diffusers") for name in names):
        import diffusers  # noqa: F401  # before dalle-pytorch, which is given empty modules that it looks for
    sides = []
    for name in names:
        torch.manual_seed(0)
        sides.append(SIDES[name](name))
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one thread, {given.data}, {SIDE} px")
    report(sides, train(sides, images, held_out, given.seconds))


if __name__ == "__main__":
    main()
