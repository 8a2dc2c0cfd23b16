"""Trains a one-pass generator of a tokenizer's latents: a conditional VAE that ends with a critic (CVAE-GAN).

    t2i train cvae --config cvae-shapes64 --set tokenizer.path=runs/vqvae-shapes64 --run-dir runs/cvae
    torchrun --nproc_per_node 2 -m t2i.cli train cvae --config cvae-shapes64 ...

Latents and text features are computed once and kept in the cache. The run directory holds everything that `t2i sample` and
`t2i eval` need. To resume, run the same command again.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from t2i import seeding
from t2i.cli import run_program
from t2i.cvae.config import Config
from t2i.cvae.critic import Critic
from t2i.cvae.network import ConditionalVAE, parameter_groups
from t2i.cvae.sampling import Latents, sample_codes
from t2i.cvae.step import Micro, criticise, draw_micro, generate, has_critic, rate, shorten_momentum
from t2i.data import Dataset
from t2i.data.augment import may_flip, warn_of_contradictions
from t2i.data.loader import RowLoader, Rows
from t2i.data.mixture import open_training
from t2i.families import ImageTokenizer
from t2i.hardware import prepare_cpu
from t2i.images import grid
from t2i.sampling.source import open_start
from t2i.seeding import noise
from t2i.text import TextFeatures
from t2i.training.codes import CachedCodes, prepare_codes, prepare_tokenizer
from t2i.training.conditioning import Captions, prepare_captions, prepare_text
from t2i.training.initialise import Reads, initialise
from t2i.training.optimization import EMA, clip_gradients, require_gradients, trained
from t2i.training.run import Run
from t2i.training.trained_on import remember
from t2i.training.validation import CHUNK, Validation, keep_best, note_validation, prepare_validation

SHOWN = 24  # prompts of the sample grid
WEIGHT_DECAY, BETA2 = 0.02, 0.95  # of AdamW


def validate(
    model: ConditionalVAE, validation: Validation, tokenizer: ImageTokenizer, latents: Latents, run: Run
) -> dict[str, float]:
    """Samples held-out prompts with fixed seeds and saves the grid; returns the scores."""
    prompts, sampled = validation.held_out.captions, []
    for rows in (range(len(prompts))[start : start + CHUNK] for start in range(0, len(prompts), CHUNK)):
        z_BZ = noise(rows, model.config.model.z_dim)
        codes = sample_codes(model, latents, z_BZ, TextFeatures(*(x[rows] for x in validation.text)))
        sampled.append(tokenizer.decode(codes.cpu()[..., None]))
    images = np.concatenate(sampled)
    run.save_samples(grid(list(images[:SHOWN]), prompts[:SHOWN], columns=6))
    return validation.held_out.scores(images)


def prepare_micro(
    config: Config, train: Dataset, captions: Captions, codes: CachedCodes, latents: Latents, batch: Rows, run: Run
) -> Micro:
    """Moves latents and captions of one micro-batch to the device and draws its random numbers."""
    index = captions.chosen(train, codes.shown(batch.rows), batch.sample_ids, config.seed)
    text = TextFeatures(*(x.to(run.device) for x in captions.text.rows(index)))
    flips = seeding.uniform(config.seed, "flip", batch.sample_ids, 1)[:, 0] < 0.5
    mirrored = flips.astype(np.int64) * config.flip
    same = captions.same[index]
    return draw_micro(config, latents.of(codes.at(batch.rows, mirrored)), text, same != same.roll(-1), batch.sample_ids)


def main(config: Config, run_dir: Path) -> None:
    prepare_cpu()
    train = open_training(config.data, replay=config.replayed)

    with Run(run_dir, config, "cvae") as run:
        # Starting weights, and data, with checks of its captions and a record of it for later scores
        source = open_start(run, config)
        warn_of_contradictions(config.data, train)
        config = config.model_copy(update={"flip": may_flip(config.flip, train)})
        remember(run, train, config.data, [config.tokenizer.path, config.text.path], source)

        # Frozen tokenizer and text encoder, and the latents and features of all images and captions
        tokenizer = prepare_tokenizer(config.tokenizer.path, config.data.resolution, run)
        latents = Latents(tokenizer)
        encoder = prepare_text(config.text, train, run)
        captions = prepare_captions(encoder, train, run, tokens=True)
        codes = prepare_codes(tokenizer, train, config.flip, run, points=True)
        validation = prepare_validation(config.data, config.validation_n, config.validation_extractor, encoder, run)

        # Generator and posterior, their average, the critic, and an optimizer for each of the two
        plain = ConditionalVAE(config, latents.shape, encoder.token_dim, encoder.pooled_dim, encoder.max_tokens)
        plain = plain.to(run.device)
        plain_critic = Critic(config, latents.shape, encoder.token_dim, encoder.max_tokens).to(run.device)
        initialise(run, config, source, {"model": plain, "critic": plain_critic}, Reads(encoder, tokenizer.digest()))
        judging = trained(plain_critic)
        ema = EMA(plain, config.ema_halflife_images)
        groups = parameter_groups(plain, WEIGHT_DECAY)
        generator_optimizer = torch.optim.AdamW(groups, config.learning_rate, betas=(0.9, BETA2))
        critic_optimizer = torch.optim.Adam(plain_critic.parameters(), config.critic.learning_rate, betas=(0.0, BETA2))

        # Parts of a checkpoint, and the state of the newest one
        for name, part in {"model": plain, "ema": ema, "optimizer": generator_optimizer}.items():
            run.register(name, part)
        run.register("critic", plain_critic)
        run.register("critic_optimizer", critic_optimizer)
        best = keep_best(run, ema.state_tensors, config.best_metric, validation.held_out.names if validation else ())
        run.resume()
        run.extra["shape"] = list(latents.shape)

        # Both networks wrapped for several processes, and rows from the position of the run
        model, critic = (run.prepare(part, config.compile) for part in (plain, plain_critic))
        loader = RowLoader(train, config.train_batch_size, config.seed, run.position)

        schedule = partial(rate, config=config)
        for batches in run.steps(loader, generator_optimizer, critic_optimizer, schedule=schedule):
            # Validation of the averaged model, and a checkpoint
            if validation and run.due(config.validation_steps):
                scores = run.on_main(
                    lambda: validate(ema.module, validation, tokenizer, latents, run)  # type: ignore[arg-type]
                )
                note_validation(run, scores, best, len(validation.held_out.captions))
            if run.due(config.checkpointing_steps):
                run.save()

            # Micro-batches of this step, none at the end of the run
            micros = [prepare_micro(config, train, captions, codes, latents, batch, run) for batch in batches]
            if not micros:
                break

            # Generator and posterior: squared error and KL divergence, late in the run also the adversarial loss
            critical = has_critic(run.step, run.total_steps, config)
            if critical:
                shorten_momentum(generator_optimizer)
            losses: list[Tensor] = []
            sampled: list[Tensor] = []
            require_gradients(judging, False)
            for micro in run.accumulate(model, micros):
                opponent = plain_critic if critical else None
                loss, watch, free = generate(model, opponent, micro, config, run.autocast())
                run.accelerator.backward(loss)
                losses.append(loss)
                sampled.append(free)
                run.note(watch)
            require_gradients(judging, True)
            norm = clip_gradients(plain)
            losses.append(norm)
            run.note({"gradient_norm": norm})

            # Critic, on the same real and generated latents
            if critical:
                for micro, free in zip(run.accumulate(critic, micros), sampled, strict=True):
                    loss, watch = criticise(critic, micro, free)
                    run.accelerator.backward(loss)
                    losses.append(loss)
                    run.note(watch)
                norm = clip_gradients(plain_critic)
                losses.append(norm)
                run.note({"critic_gradient_norm": norm})

            # Update of both, unless a loss or gradient is not finite
            if run.judge(*losses):
                generator_optimizer.step()
                if critical:
                    critic_optimizer.step()
                ema.update(plain, run.images_per_step, run.images_seen + run.images_per_step)
            generator_optimizer.zero_grad()
            critic_optimizer.zero_grad()


if __name__ == "__main__":  # python -m t2i.train.cvae
    run_program("train", "cvae")
