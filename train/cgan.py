"""Trains a text-conditional GAN on captioned pictures, conditioned by a frozen text encoder.

    t2i train cgan --config cgan-tiny --set text.path=runs/align --run-dir runs/shapes
    torchrun --nproc_per_node 2 -m t2i.cli train cgan --config cgan-tiny --set text.path=runs/align --run-dir runs/shapes

The directory holds all that `t2i sample` and `t2i eval` need. To resume, run the same command again.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from t2i import seeding
from t2i.cgan import rules
from t2i.cgan.augment import DRAWS, augment, flip
from t2i.cgan.build import build
from t2i.cgan.config import Config
from t2i.cgan.sampling import draw, noise
from t2i.data import Dataset, open_dataset
from t2i.data.cache import CachedText, encode_cached
from t2i.data.loader import Batch, Loader, choose_captions
from t2i.data.shapes_captions import parse
from t2i.data.shapes_oracle import judge, read
from t2i.errors import InputError
from t2i.guidance import Guide, make_guide
from t2i.images import grid, to_model
from t2i.metrics.diversity import within_prompt_diversity
from t2i.run import EMA, NonFiniteGuard, Run, learning_rate, prepare_cpu, set_learning_rate
from t2i.text import TextEncoder, TextFeatures, fit_encoder, load_encoder

VALIDATED = 200  # held-out captions that a validation draws
SHOWN, DIVERSE = 24, 4  # prompts of the sample grid; pictures a prompt for the diversity


class Captions(NamedTuple):
    """All training captions, flat, with their features."""

    text: CachedText
    first: np.ndarray  # index of the first caption of each picture
    same: Tensor  # one number for each different caption
    guide: Tensor | None  # embeddings by the guide, [captions, E]


class Micro(NamedTuple):
    """One micro-batch, on the device."""

    real: Tensor
    text: TextFeatures
    captions: rules.Captions
    guide: tuple[Tensor, Tensor] | None  # embeddings of the captions and of the pool
    z: Tensor
    draws: tuple[Tensor, Tensor]  # augmentation of reals and of fakes
    noise: tuple[Tensor, Tensor] | None  # for the penalties


class Validation(NamedTuple):
    """Held-out captions that samples are drawn for."""

    prompts: list[str]
    text: TextFeatures


def prepare_text(config: Config, train: Dataset, run: Run) -> TextEncoder:
    """The run's own encoder: the one saved in it, or a new one that is saved now."""
    folder = run.directory / "text"
    with run.accelerator.main_process_first():
        if (folder / "encoder.json").exists():
            return load_encoder(folder)
        encoder = fit_encoder(config.text, [caption for options in train.captions for caption in options])
        if run.is_main:
            encoder.save(folder)
    return encoder


def prepare_captions(config: Config, train: Dataset, encoder: TextEncoder, guide: Guide | None, run: Run) -> Captions:
    """Encodes every training caption once; the features come from disk the next time."""
    flat = [caption for options in train.captions for caption in options]
    with run.accelerator.main_process_first():
        text = encode_cached(encoder, flat, tokens=config.generator.reads_words)
    number = {caption: i for i, caption in enumerate(dict.fromkeys(flat))}
    first = np.cumsum([0, *(len(options) for options in train.captions)])[:-1]
    same = torch.tensor([number[caption] for caption in flat])
    return Captions(text, first, same, guide.text(flat) if guide else None)


def prepare_validation(config: Config, encoder: TextEncoder) -> Validation | None:
    """Captions of `val`, one a picture; None where the data has no such split."""
    try:
        held_out = open_dataset(config.data.address, "val", config.data.view(VALIDATED))
    except InputError:
        return None
    prompts = [options[0] for options in held_out.captions]
    return Validation(prompts, encoder.encode(prompts))


def validate(model: nn.Module, validation: Validation, run: Run) -> dict[str, float]:
    """Draws held-out prompts with fixed seeds, saves the grid, and measures what needs no real pictures."""
    prompts, text = validation
    images = draw(model, noise(range(len(prompts)), model.config.z_dim), text)  # type: ignore
    (run.directory / "samples").mkdir(exist_ok=True)
    sheet = grid(list(images[:SHOWN]), prompts[:SHOWN], columns=6)
    sheet.save(run.directory / "samples" / f"step-{run.step:08d}.png")
    repeated = TextFeatures(*(x[:SHOWN].repeat_interleave(DIVERSE, dim=0) for x in text))
    several = draw(model, noise(range(len(repeated.pooled_BP)), model.config.z_dim), repeated)  # type: ignore
    owner = np.arange(min(SHOWN, len(prompts))).repeat(DIVERSE)
    found = {"diversity": within_prompt_diversity(several.reshape(len(several), -1) / 127.5, owner).value}
    specs = [parse(prompt) for prompt in prompts]
    if all(specs):
        judged = judge(read(images), specs)  # type: ignore[arg-type]
        found |= {f"val_{name}": float(flags.mean()) for name, flags in judged.items()}
    return found


@torch.no_grad()
def track_mean_latent(generator: nn.Module, micro: Micro) -> None:
    """The mean latent over captions, kept as a buffer: what guidance in sampling moves away from."""
    mean = generator.mapping(micro.z, micro.text.pooled_BP).mean(dim=0)  # type: ignore[operator]
    average: Tensor = generator.w_average  # type: ignore[assignment]
    average.lerp_(mean, 0.02 if average.any() else 1.0)


def main(config: Config, run_dir: Path) -> None:
    prepare_cpu()
    train = open_dataset(config.data.address, "train", config.data.view(config.data.limit))

    with Run(run_dir, config, "cgan") as run:
        encoder = prepare_text(config, train, run)
        guide = make_guide(config.guidance, encoder)
        captions = prepare_captions(config, train, encoder, guide, run)
        validation = prepare_validation(config, encoder)
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
        run.resume()
        generator, discriminator = (run.prepare(model, config.compile) for model in models)

        place = (run.images_seen, run.process_index, run.num_processes, config.dataloader_num_workers, run.quarantine)
        run.loader = loader = Loader(train, config.train_batch_size, config.seed, *place)
        guard = NonFiniteGuard()
        parameters = {
            "generator": list(plain_generator.parameters()),
            "discriminator": list(plain_discriminator.parameters()),
        }
        run.extra = {"text_digest": encoder.digest(), "guide_digest": guide.digest() if guide else None}

        def prepare(batch: Batch, penalty: bool) -> Micro:
            chosen = choose_captions(train, batch.rows, batch.sample_ids, config.seed)
            index = np.array([captions.first[row] + k for row, k in chosen])
            pool = (
                seeding.uniform(config.seed, f"pool/{run.step}", np.arange(config.loss.negatives), 1)[:, 0]
                * len(captions.same)
            ).astype(np.int64)
            pool_rows = np.searchsorted(captions.first, pool, side="right") - 1
            same = (captions.same[index][:, None] == captions.same[pool]) | torch.from_numpy(
                batch.rows[:, None] == pool_rows
            )
            tokens = config.generator.reads_words
            text = TextFeatures(*(x.to(run.device) for x in captions.text.rows(index, tokens=tokens)))
            pool_BP = captions.text.rows(pool, tokens=False).pooled_BP.to(run.device)
            draws = [
                torch.from_numpy(seeding.uniform(config.seed, f"augment/{who}", batch.sample_ids, DRAWS))
                .float()
                .to(run.device)
                for who in ("real", "fake")
            ]
            real = to_model(batch.images_BHWC.numpy()).to(run.device)
            if config.flip:
                real = flip(real, draws[0])
            count = max(1, round(config.loss.penalty_fraction * len(real)))
            probes = tuple(torch.randn_like(real[:count]) for _ in range(2)) if penalty else None
            z = torch.from_numpy(seeding.normal(config.seed, "train/z", batch.sample_ids, config.generator.z_dim))
            embedded = (
                None
                if captions.guide is None
                else (captions.guide[index].to(run.device), captions.guide[pool].to(run.device))
            )
            return Micro(
                real, text, rules.Captions(text.pooled_BP, pool_BP, same.to(run.device)), embedded, z.to(run.device),
                (draws[0], draws[1]), probes,
            )  # fmt: skip

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
            micros = [prepare(batch, config.loss.penalty == "finite_difference") for batch in batches]
            share = len(micros) == 1  # one pass of the generator serves both players
            watch: dict[str, Tensor] = {}

            for i, micro in enumerate(micros):
                with torch.set_grad_enabled(share):
                    fake = generator(micro.z, micro.text)
                real = augment(micro.real, config.augment, micro.draws[0])
                shown = augment(fake.detach(), config.augment, micro.draws[1])
                with synced(discriminator, i == len(micros) - 1):
                    loss, seen = rules.discriminator_loss(
                        discriminator, real, shown, micro.captions, micro.noise, config.loss, gamma, condition
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
                    real = augment(micro.real, config.augment, micro.draws[0])
                    shown = augment(fake, config.augment, micro.draws[1])
                    loss = rules.generator_loss(
                        plain_discriminator, real, shown, micro.captions, config.loss, condition
                    )
                    watch["g_loss"] = loss.detach()
                    if guide and micro.guide:
                        with run.accelerator.autocast():
                            embedding = guide.images(fake)
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
                track_mean_latent(plain_generator, micros[0])
                ema.update(plain_generator, images, run.images_seen)
            run.note(watch | {"learning_rate": lr, "gamma": gamma})

            if validation and run.is_main and run.due(config.validation_steps):
                run.record(validate(ema.module, validation, run))
            if run.due(config.checkpointing_steps):
                run.save()
