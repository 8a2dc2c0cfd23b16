"""Trains a text-conditional GAN on captioned pictures, conditioned by a frozen text encoder.

    t2i train cgan --config cgan-tiny --set text.path=runs/align --run-dir runs/shapes
    torchrun --nproc_per_node 2 -m t2i.cli train cgan --config cgan-tiny --set text.path=runs/align --run-dir runs/shapes

The directory holds all that `t2i sample` and `t2i eval` need. To resume, run the same command again.
"""

import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i import seeding
from t2i.cgan import rules
from t2i.cgan.architectures import build
from t2i.cgan.config import Config, without_effect
from t2i.cgan.diffaugment import DRAWS, augment, flip
from t2i.cgan.guidance import make_guide
from t2i.cgan.sampling import noise, sample_uint8
from t2i.cli import run_program
from t2i.data import Dataset, open_dataset
from t2i.data.caption_checks import may_flip, warn_of_colors, warn_of_crops
from t2i.data.loader import Batch, Loader
from t2i.hardware import prepare_cpu
from t2i.images import grid, to_model
from t2i.metrics.diversity import within_prompt_diversity
from t2i.text import TextEncoder, TextFeatures
from t2i.training.conditioning import Captions, prepare_captions, prepare_text
from t2i.training.optimization import EMA, NonFiniteGuard, learning_rate, set_learning_rate
from t2i.training.run import Run
from t2i.training.trained_on import remember
from t2i.training.validation import CHUNK, HeldOut, keep_best, note_validation, open_held_out

SHOWN, DIVERSE = 24, 4  # prompts of the sample grid; pictures a prompt for the diversity


class Micro(NamedTuple):
    """One micro-batch, on the device."""

    real: Tensor
    real_shown: Tensor  # augmented, as the discriminator sees it
    text: TextFeatures
    captions: rules.Captions
    guide: tuple[Tensor, Tensor] | None  # embeddings of the captions and of the pool
    z: Tensor
    fake_draws: Tensor  # of the augmentation of generated pictures
    noise: tuple[Tensor, Tensor] | None  # for the penalties


class Validation(NamedTuple):
    """Held-out captions that samples are drawn for, and their pictures."""

    held_out: HeldOut
    text: TextFeatures


def prepare_validation(config: Config, encoder: TextEncoder, run: Run) -> Validation | None:
    """Captions of `val`, one a picture; None where the data has no such split."""
    dataset = open_held_out(config.data, "val", config.validation_n)
    if dataset is None:
        return None
    prompts = [options[0] for options in dataset.captions]
    held_out = HeldOut(dataset, prompts, range(len(dataset)), config.validation_extractor, run.device)
    return Validation(held_out, encoder.encode(prompts))


def validate(model: nn.Module, validation: Validation, run: Run) -> tuple[dict[str, float], float]:
    """Draws held-out prompts with fixed seeds and saves the grid: the scores, and the diversity within a prompt."""
    prompts, text = validation.held_out.captions, validation.text
    parts = [range(len(prompts))[start : start + CHUNK] for start in range(0, len(prompts), CHUNK)]
    chunks = (
        sample_uint8(model, noise(rows, model.config.z_dim), TextFeatures(*(x[rows] for x in text))) for rows in parts
    )  # type: ignore
    images = np.concatenate(list(chunks))
    (run.directory / "samples").mkdir(exist_ok=True)
    sheet = grid(list(images[:SHOWN]), prompts[:SHOWN], columns=6)
    sheet.save(run.directory / "samples" / f"step-{run.step:08d}.png")
    repeated = TextFeatures(*(x[:SHOWN].repeat_interleave(DIVERSE, dim=0) for x in text))
    several = sample_uint8(model, noise(range(len(repeated.pooled_BP)), model.config.z_dim), repeated)  # type: ignore
    owner = np.arange(min(SHOWN, len(prompts))).repeat(DIVERSE)
    diversity = within_prompt_diversity(several.reshape(len(several), -1) / 127.5, owner).value
    return validation.held_out.scores(images), diversity


@torch.no_grad()
def track_mean_latent(generator: nn.Module, micro: Micro, step: int) -> None:
    """The mean latent over captions, kept as a buffer: what guidance in sampling moves away from."""
    mean = generator.mapping(micro.z, micro.text.pooled_BP).mean(dim=0)  # type: ignore[operator]
    generator.w_average.lerp_(mean, max(0.02, 1 / step))  # type: ignore[union-attr,operator]


def draw_pool(config: Config, captions: Captions, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Captions of a step that serve as mismatches: their numbers, and the rows of the pictures that they belong to."""
    uniforms = seeding.uniform(config.seed, f"pool/{step}", np.arange(config.loss.negatives), 1)[:, 0]
    pool = (uniforms * len(captions.same)).astype(np.int64)
    return pool, np.searchsorted(captions.first, pool, side="right") - 1


@torch.no_grad()
def nearest_noise(generator: nn.Module, config: Config, micro: Micro, sample_ids: np.ndarray) -> Tensor:
    """z_BZ: of a few noises for each caption, the one whose picture is nearest to the real one.

    Conditional IMLE (Li et al., IJCV 2020): pulling only the nearest towards the real picture leaves the noise to decide what
    the caption leaves open, where pulling every one would draw the mean of all. Compared at half size: finer detail is
    not the noise's to choose.
    """
    shape = config.generator.z_dim, config.loss.candidates
    others = [
        torch.from_numpy(seeding.normal(config.seed, f"train/z/{k}", sample_ids, shape[0])) for k in range(1, shape[1])
    ]
    z_NZ = torch.cat([micro.z, *(z.to(micro.z.device) for z in others)])
    text = TextFeatures(*(x.repeat(shape[1], *[1] * (x.ndim - 1)) for x in micro.text))
    drawn = F.avg_pool2d(generator(z_NZ, text).float(), 2).flatten(1).view(shape[1], len(micro.z), -1)
    nearest_B = (drawn - F.avg_pool2d(micro.real, 2).flatten(1)).square().mean(dim=2).argmin(dim=0)
    return z_NZ.view(shape[1], len(micro.z), -1)[nearest_B, torch.arange(len(micro.z), device=nearest_B.device)]


def prepare_micro(
    config: Config, train: Dataset, captions: Captions, guiding: Tensor | None, batch: Batch, run: Run
) -> Micro:
    """Pictures and captions of one micro-batch with all its random draws, on the device.

    Args:
        guiding: the guide's embeddings of all captions.
    """
    device, seed, ids = run.device, config.seed, batch.sample_ids
    index = captions.chosen(train, batch.rows, ids, seed)
    pool, pool_rows = draw_pool(config, captions, run.step)
    same = captions.same[index][:, None] == captions.same[pool]
    same |= torch.from_numpy(batch.rows[:, None] == pool_rows)
    text = TextFeatures(*(x.to(device) for x in captions.text.rows(index, tokens=config.generator.cross_attention)))
    pool_BP = captions.text.rows(pool, tokens=False).pooled_BP.to(device)
    real_draws, fake_draws = (
        torch.from_numpy(seeding.uniform(seed, f"augment/{who}", ids, DRAWS)).float().to(device)
        for who in ("real", "fake")
    )
    real = to_model(batch.images_BHWC.numpy()).to(device)
    if config.flip:
        real = flip(real, real_draws)
    probed = real[: max(1, round(config.loss.penalty_fraction * len(real)))]
    probes = None
    if config.loss.penalty == "finite_difference":
        probes = torch.randn_like(probed), torch.randn_like(probed)
    return Micro(
        real=real,
        real_shown=augment(real, config.augment, real_draws),
        text=text,
        captions=rules.Captions(text.pooled_BP, pool_BP, same.to(device)),
        guide=None if guiding is None else (guiding[index].to(device), guiding[pool].to(device)),
        z=torch.from_numpy(seeding.normal(seed, "train/z", ids, config.generator.z_dim)).to(device),
        fake_draws=fake_draws,
        noise=probes,
    )


def main(config: Config, run_dir: Path) -> None:
    for idle in without_effect(config):
        warnings.warn(idle, stacklevel=1)
    prepare_cpu()
    train = open_dataset(config.data.address, "train", config.data.view(config.data.limit))

    with Run(run_dir, config, "cgan") as run:
        warn_of_crops(config.data.fit, train)
        warn_of_colors(config.data.augment, train)
        config = config.model_copy(update={"flip": may_flip(config.flip, train)})
        remember(run, train, config.data, [config.text.path, config.guidance.path])
        encoder = prepare_text(config.text, train, run)
        guide = make_guide(config.guidance, encoder)
        run.identify("guide_digest", guide.digest() if guide else None, "guide")
        captions = prepare_captions(encoder, train, run, tokens=config.generator.cross_attention)
        guiding = guide.embed_text(captions.flat) if guide else None
        validation = prepare_validation(config, encoder, run)
        if guide:
            guide.to(run.device)

        models = build(config, encoder.pooled_dim, encoder.token_dim)
        plain_generator, plain_discriminator = (model.to(run.device) for model in models)
        ema = EMA(plain_generator, config.ema_halflife_images, config.ema_ramp)
        adam = {"betas": (0.0, config.adam_beta2)}
        generator_optimizer = torch.optim.Adam(plain_generator.parameters(), config.learning_rate, **adam)
        discriminator_optimizer = torch.optim.Adam(plain_discriminator.parameters(), config.learning_rate, **adam)
        parts = (plain_generator, plain_discriminator, ema, generator_optimizer, discriminator_optimizer)
        names = ("generator", "discriminator", "ema", "generator_optimizer", "discriminator_optimizer")
        for name, part in zip(names, parts, strict=True):
            run.register(name, part)
        names = validation.held_out.names if validation else ()
        best = keep_best(run, ema.state_tensors, config.best_metric, names)
        run.resume()
        generator, discriminator = (run.prepare(model, config.compile) for model in models)

        place = (run.images_seen, run.process_index, run.num_processes, config.dataloader_num_workers, run.quarantine)
        run.loader = loader = Loader(train, config.train_batch_size, config.seed, *place, config.data.augment)
        guard = NonFiniteGuard(run.rollback)
        parameters = {
            "generator": list(plain_generator.parameters()),
            "discriminator": list(plain_discriminator.parameters()),
        }

        def synced(model: nn.Module, last: bool) -> AbstractContextManager:
            return nullcontext() if last else run.accelerator.no_sync(model)

        while run.step < run.total_steps and not run.stopping():
            lr = learning_rate(
                run.step, run.total_steps, config.learning_rate, config.lr_warmup_steps, config.lr_final_factor
            )
            ratio = (config.discriminator_learning_rate or config.learning_rate) / config.learning_rate
            set_learning_rate(generator_optimizer, lr)
            set_learning_rate(discriminator_optimizer, lr * ratio)
            gamma = learning_rate(run.step, run.total_steps, config.loss.gamma, 0, 0.1)
            condition = min(1.0, run.step / (config.condition_ramp * run.total_steps)) if config.condition_ramp else 1.0
            batches = [next(loader) for _ in range(config.gradient_accumulation_steps)]
            micros = [prepare_micro(config, train, captions, guiding, batch, run) for batch in batches]
            if config.loss.reconstruction and config.loss.candidates > 1:
                with run.accelerator.autocast():
                    micros = [
                        micro._replace(z=nearest_noise(plain_generator, config, micro, batch.sample_ids))
                        for micro, batch in zip(micros, batches, strict=True)
                    ]
            share = len(micros) == 1  # one pass of the generator serves both players
            watch: dict[str, Tensor] = {}

            for i, micro in enumerate(micros):
                with torch.set_grad_enabled(share):
                    fake = generator(micro.z, micro.text)
                shown = augment(fake.detach(), config.augment, micro.fake_draws)
                with synced(discriminator, i == len(micros) - 1):
                    loss, seen = rules.discriminator_loss(
                        discriminator,
                        micro.real_shown,
                        shown,
                        micro.captions,
                        micro.noise,
                        config.loss,
                        gamma,
                        condition,
                    )
                    run.accelerator.backward(loss)
                watch |= {name: value.detach() for name, value in seen.items()} | {"d_loss": loss.detach()}
            watch["d_gradient"] = nn.utils.get_total_norm(
                [p.grad for p in parameters["discriminator"] if p.grad is not None]
            )
            sound = run.all_finite(watch["d_loss"], watch["d_gradient"])
            if sound:
                discriminator_optimizer.step()
            discriminator_optimizer.zero_grad()

            plain_discriminator.requires_grad_(False)
            for i, micro in enumerate(micros):
                with synced(generator, i == len(micros) - 1):
                    if not share:
                        fake = generator(micro.z, micro.text)
                    shown = augment(fake, config.augment, micro.fake_draws)
                    loss = rules.generator_loss(
                        plain_discriminator, micro.real_shown, shown, micro.captions, config.loss, condition
                    )
                    watch["g_loss"] = loss.detach()
                    if config.loss.reconstruction:
                        distance = (fake.float() - micro.real).square().mean()
                        watch["reconstruction"] = distance.detach()
                        loss = loss + config.loss.reconstruction * distance
                    if guide and micro.guide:
                        with run.accelerator.autocast():
                            embedding = guide.embed_images(fake)
                        guided = rules.guidance_loss(embedding, *micro.guide, micro.captions.same_BM, guide.scale)
                        watch["guidance"] = guided.detach()
                        loss = loss + config.guidance.weight * guided
                    run.accelerator.backward(loss)
            plain_discriminator.requires_grad_(True)
            watch["g_gradient"] = nn.utils.get_total_norm(
                [p.grad for p in parameters["generator"] if p.grad is not None]
            )
            sound = guard.check(
                sound and run.all_finite(loss, watch["g_gradient"]), run.step, batches[0].sample_ids.tolist()
            )
            if sound:
                generator_optimizer.step()
            generator_optimizer.zero_grad()

            images = config.train_batch_size * len(micros) * run.num_processes
            run.advance(images)
            if sound:
                track_mean_latent(plain_generator, micros[0], run.step)
                ema.update(plain_generator, images, run.images_seen)
            run.note(watch | {"learning_rate": lr, "gamma": gamma})

            if validation and run.due(config.validation_steps):
                found, diversity = run.on_main(lambda: validate(ema.module, validation, run))  # type: ignore[arg-type]
                note_validation(run, found, best, diversity=diversity)
            if run.due(config.checkpointing_steps):
                run.save()


if __name__ == "__main__":  # python -m t2i.train.cgan
    run_program("train", "cgan")
