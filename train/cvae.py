"""Trains a one-pass generator of a tokenizer's latents as a conditional VAE, conditioned by a frozen text encoder.

    t2i train cvae --config cvae-shapes64 --set tokenizer.path=runs/vqvae-shapes64 --run-dir runs/cvae
    torchrun --nproc_per_node 2 -m t2i.cli train cvae --config cvae-shapes64 ...

Codes and text features are computed once and kept in the cache. The run directory holds everything that `t2i sample` and
`t2i eval` need. To resume, run the same command again.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from t2i import seeding
from t2i.cvae.config import Config
from t2i.cvae.network import ConditionalVAE, Draws, parameter_groups
from t2i.cvae.sampling import Latents, sample_codes
from t2i.data import Dataset, open_dataset
from t2i.data.caption_checks import may_flip, warn_of_crops
from t2i.data.loader import RowLoader, Rows
from t2i.families import ImageTokenizer
from t2i.hardware import prepare_cpu
from t2i.images import grid
from t2i.noise import noise
from t2i.text import TextEncoder, TextFeatures
from t2i.training.codes import CachedCodes
from t2i.training.conditioning import Captions, prepare_captions, prepare_text
from t2i.training.optimization import EMA, MAX_GRADIENT
from t2i.training.run import Run
from t2i.training.tokenization import prepare_codes, prepare_tokenizer
from t2i.training.trained_on import remember
from t2i.training.validation import CHUNK, HeldOut, keep_best, note_validation, open_held_out

SHOWN = 24  # prompts of the sample grid


class Validation(NamedTuple):
    """Held-out captions, the scores they are judged by, and their text features."""

    held_out: HeldOut
    text: TextFeatures


def prepare_validation(config: Config, encoder: TextEncoder, run: Run) -> Validation | None:
    """Returns the captions of `val`, one of each image; None where the data has no such split."""
    dataset = open_held_out(config.data, "val", config.validation_n)
    if dataset is None:
        return None
    prompts = [options[0] for options in dataset.captions]
    held_out = HeldOut(dataset, prompts, range(len(dataset)), config.validation_extractor, run.device)
    return Validation(held_out, encoder.encode(prompts))


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
    (run.directory / "samples").mkdir(exist_ok=True)
    sheet = grid(list(images[:SHOWN]), prompts[:SHOWN], columns=6)
    sheet.save(run.directory / "samples" / f"step-{run.step:08d}.png")
    return validation.held_out.scores(images)


def prepare_micro(
    config: Config, train: Dataset, captions: Captions, codes: CachedCodes, latents: Latents, batch: Rows, run: Run
) -> tuple[Tensor, TextFeatures, Draws]:
    """Puts latents and captions of one micro-batch on the device, with all that chance decides of them."""
    seed, ids = config.seed, batch.sample_ids
    index = captions.chosen(train, codes.shown(batch.rows), ids, seed)
    text = TextFeatures(*(x.to(run.device) for x in captions.text.rows(index)))
    mirrored = (seeding.uniform(seed, "flip", ids, 1)[:, 0] < 0.5).astype(np.int64) * config.flip
    latents_BLC = latents.of(codes.at(batch.rows, mirrored)[..., 0])
    draws = Draws(
        torch.from_numpy(seeding.normal(seed, "posterior", ids, config.model.z_dim)).to(run.device),
        torch.from_numpy(seeding.uniform(seed, "without_noise", ids, 1)[:, 0]).to(run.device),
    )
    return latents_BLC, text, draws


def main(config: Config, run_dir: Path) -> None:
    prepare_cpu()
    train = open_dataset(config.data.address, "train", config.data.view(config.data.limit))

    with Run(run_dir, config, "cvae") as run:
        # Data: what of it may contradict its captions, and a record of it for later scores
        warn_of_crops(config.data.fit, train)
        config = config.model_copy(update={"flip": may_flip(config.flip, train)})
        remember(run, train, config.data, [config.tokenizer.path, config.text.path])

        # Latents and text: the frozen tokenizer and encoder, and what they make of all images and captions
        tokenizer = prepare_tokenizer(config.tokenizer.path, config.data.resolution, run)
        latents = Latents(tokenizer)
        encoder = prepare_text(config.text, train, run)
        captions = prepare_captions(encoder, train, run, tokens=True)
        codes = prepare_codes(tokenizer, train, config.flip, run)
        validation = prepare_validation(config, encoder, run)

        # Generator and posterior, their average, and AdamW
        plain = ConditionalVAE(config, latents.shape, encoder.token_dim, encoder.pooled_dim, encoder.max_tokens)
        plain = plain.to(run.device)
        ema = EMA(plain, config.ema_halflife_images)
        groups = parameter_groups(plain, config.weight_decay)
        optimizer = torch.optim.AdamW(groups, config.learning_rate, betas=(0.9, config.adam_beta2))

        # Parts of a checkpoint, and the newest one to go on from
        for name, part in {"model": plain, "ema": ema, "optimizer": optimizer}.items():
            run.register(name, part)
        best = keep_best(run, ema.state_tensors, config.best_metric, validation.held_out.names if validation else ())
        run.resume()
        run.extra |= {
            "text_digest": encoder.digest(), "tokenizer_digest": tokenizer.digest(), "shape": list(latents.shape)
        }  # fmt: skip

        # The model as the processes of the run share it, and the rows from where the run left off
        model = run.prepare(plain, config.compile)
        loader = RowLoader(len(train), config.train_batch_size, config.seed, *run.position)

        for batches in run.steps(loader, optimizer):
            # Validation of the averaged model, and a checkpoint
            if validation and run.due(config.validation_steps):
                found = run.on_main(
                    lambda: validate(ema.module, validation, tokenizer, latents, run)  # type: ignore[arg-type]
                )
                note_validation(run, found, best)
            if run.due(config.checkpointing_steps):
                run.save()

            # Micro-batches of this step; none at the end of the run
            micros = [prepare_micro(config, train, captions, codes, latents, batch, run) for batch in batches]
            if not micros:
                break

            # Step on the squared error of latents and the information in the noise
            losses: list[Tensor] = []
            for micro in run.accumulate(model, micros):
                terms = model(*micro)
                run.accelerator.backward(terms.loss)
                losses.append(terms.loss)
                run.note({name: value.detach() for name, value in terms._asdict().items()})
            norm = nn.utils.clip_grad_norm_(plain.parameters(), MAX_GRADIENT)
            sound = run.all_finite(*losses, norm)
            if sound:
                optimizer.step()
                ema.update(plain, run.images_per_step, run.images_seen + run.images_per_step)
            optimizer.zero_grad()
            run.note({"gradient_norm": norm})
