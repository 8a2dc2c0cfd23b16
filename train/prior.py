"""Trains an autoregressive prior over the codes of a trained tokenizer, conditioned by a frozen text encoder.

    t2i train prior --config prior-tiny --set tokenizer.path=runs/vqvae --set text.path=runs/align --run-dir runs/prior
    torchrun --nproc_per_node 2 -m t2i.cli train prior --config prior-tiny ...

Codes and text features are computed once and kept in the cache. The run directory holds everything that `t2i sample` and
`t2i eval` need. To resume, run the same command again.
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from t2i import seeding
from t2i.cli import run_program
from t2i.data import Dataset
from t2i.data.augment import may_flip, warn_of_contradictions
from t2i.data.loader import RowLoader, Rows
from t2i.data.mixture import open_training
from t2i.errors import InputError
from t2i.families import ImageTokenizer
from t2i.hardware import prepare_cpu
from t2i.images import grid
from t2i.prior.config import Config
from t2i.prior.decoding import decode
from t2i.prior.low_rank import Merged, add_low_rank
from t2i.prior.step import BITS, PriorMicro, bits_per_token, draw_micro, one_by_one, parameter_groups
from t2i.prior.transformer import Grid, Prior
from t2i.sampling.source import open_start
from t2i.text import TextEncoder, TextFeatures
from t2i.training.codes import CachedCodes, prepare_codes, prepare_tokenizer
from t2i.training.conditioning import Captions, prepare_captions, prepare_text
from t2i.training.initialise import Reads, initialise
from t2i.training.optimization import EMA, clip_gradients, trained
from t2i.training.private.checks import refuse_seen
from t2i.training.private.training import PrivateTraining
from t2i.training.run import Run
from t2i.training.trained_on import remember
from t2i.training.validation import CHUNK, HeldOut, keep_best, note_validation, open_held_out

MEASURED = 1000  # held-out images for measuring likelihood; images are sampled for fewer of them
SHOWN = 24  # prompts in the sample grid


class PriorValidation(NamedTuple):
    """One held-out split: captions to sample and score, the text features of all captions, the codes of all images."""

    held_out: HeldOut
    text: TextFeatures
    codes_BS: Tensor


def check_top_k(config: Config, tokenizer: ImageTokenizer) -> None:
    """Raises InputError if `sampling.top_k` is larger than the codebook."""
    top_k = config.sampling.top_k
    if top_k is not None and top_k > tokenizer.codebook_size:
        raise InputError(
            f"sampling.top_k {top_k} is more than the {tokenizer.codebook_size} codes; lower it, or set null"
        )


def prepare_validation(
    config: Config, encoder: TextEncoder, tokenizer: ImageTokenizer, run: Run
) -> PriorValidation | None:
    """Returns the images of `val` with one caption each; None if the data has no such split."""
    dataset = open_held_out(config.data, "val", max(MEASURED, config.validation_n))
    run.identity.keep_held_out("val", dataset)
    if dataset is None:
        return None
    codes = prepare_codes(tokenizer, dataset, False, run)
    rows = np.arange(len(dataset))
    shown = codes.shown(rows).tolist()
    prompts = [str(dataset.captions[row][0]) for row in shown]
    sampled = slice(config.validation_n)
    held_out = HeldOut(dataset, prompts[sampled], shown[sampled], config.validation_extractor, run.device)
    return PriorValidation(held_out, encoder.encode(prompts), codes.at(rows, np.zeros_like(rows)).flatten(1))


def validate(model: Prior, validation: PriorValidation, tokenizer: ImageTokenizer, run: Run) -> dict[str, float]:
    """Samples held-out prompts with fixed seeds and the run's sampling settings, and saves a grid; returns bits per token
    and the scores of the samples."""
    prompts, sampled = validation.held_out.captions, []
    for rows in (range(len(prompts))[start : start + CHUNK] for start in range(0, len(prompts), CHUNK)):
        text = TextFeatures(*(x[rows] for x in validation.text))
        codes = decode(model, text, rows, model.config.sampling)
        sampled.append(tokenizer.decode(codes.view(len(codes), -1, tokenizer.codebooks)))
    images = np.concatenate(sampled)
    run.save_samples(grid(list(images[:SHOWN]), prompts[:SHOWN], columns=6))
    bits = bits_per_token(model, validation.codes_BS, validation.text)
    return {"bits_per_token": bits} | validation.held_out.scores(images)


def prepare_micro(
    config: Config, train: Dataset, captions: Captions, codes: CachedCodes, batch: Rows, run: Run
) -> PriorMicro:
    """Moves codes and captions of one micro-batch to the device, together with its random draws."""
    index = captions.chosen(train, codes.shown(batch.rows), batch.sample_ids, config.seed)
    text = TextFeatures(*(x.to(run.device) for x in captions.text.rows(index)))
    mirrored = (seeding.uniform(config.seed, "flip", batch.sample_ids, 1)[:, 0] < 0.5).astype(np.int64) * config.flip
    codes_BS = codes.at(batch.rows, mirrored).flatten(1).to(run.device)
    micro = draw_micro(config, codes_BS, text, batch.sample_ids, run.step)
    # an image without a caption always trains with the null caption
    micro.draws.caption_B[torch.from_numpy(~captions.have_text(index)).to(run.device)] = -1.0
    return micro


def main(config: Config, run_dir: Path) -> None:
    prepare_cpu()
    train = open_training(config.data, replay=config.replayed)

    with Run(run_dir, config, "prior") as run:
        # Starting weights, data, and a record of both for later scores
        source = open_start(run, config)
        warn_of_contradictions(config.data, train)
        config = config.model_copy(update={"flip": may_flip(config.flip, train)})
        remember(run, train, config.data, [config.tokenizer.path, config.text.path], source)

        # Codes and text: the frozen tokenizer and encoder, the codes of all images, the features of all captions
        tokenizer = prepare_tokenizer(config.tokenizer.path, config.data.resolution, run)
        check_top_k(config, tokenizer)
        encoder = prepare_text(config.text, train, run)
        captions = prepare_captions(encoder, train, run, tokens=True)
        codes = prepare_codes(tokenizer, train, config.flip, run)
        private = None
        if config.privacy is not None:
            parts = {"tokenizer.path": config.tokenizer.path, "init_from": config.init_from}
            named = {key: place for key, place in parts.items() if place is not None}
            refuse_seen(train, named | ({"text.path": config.text.path} if config.text.encoder == "aligned" else {}))
            private = PrivateTraining(run, config.privacy, codes.shown(np.arange(len(codes))))
        validation = prepare_validation(config, encoder, tokenizer, run)

        # Transformer, its average, and AdamW
        shape = Grid(tokenizer.grid, tokenizer.grid, tokenizer.codebooks, tokenizer.codebook_size)
        plain = Prior(config, shape, encoder.token_dim, encoder.pooled_dim, encoder.max_tokens).to(run.device)
        initialise(run, config, source, {"model": plain}, Reads(encoder, tokenizer.digest()))
        merged = Merged(plain, config.lora is not None)
        ema = EMA(plain, config.ema_halflife_images)
        if config.lora is not None:
            add_low_rank(plain, config.lora, run.extra["init"]["fresh"].get("model", []))
        if config.sharding == "full":
            run.shard(plain, plain.blocks, ema.module)
        groups = parameter_groups(plain, config.weight_decay)
        optimizer = torch.optim.AdamW(groups, config.learning_rate, betas=(0.9, 0.95))

        # Parts of a checkpoint; the newest checkpoint is resumed
        for name, part in {"model": plain, "ema": ema, "optimizer": optimizer}.items():
            run.register(name, part)
        names = ("bits_per_token", *validation.held_out.names) if validation else None
        best = keep_best(run, ema.state_tensors, config.best_metric, names)
        run.resume()
        run.extra["grid"] = list(shape)

        # The model wrapped for the run's processes, and a loader of rows that starts at the run's position
        model = run.prepare(plain, config.compile)
        loader = private.rows() if private else RowLoader(train, config.train_batch_size, config.seed, run.position)
        if private:
            private.account(run.step)

        for batches in run.steps(loader, optimizer):
            # Validation of the averaged model, and a checkpoint
            if validation and run.due(config.validation_steps):
                scores = run.on_main(partial(validate, run.whole(ema.module), validation, tokenizer, run))  # type: ignore[arg-type]
                note_validation(run, scores, best, len(validation.held_out.captions))
            if private and run.due(config.validation_steps):
                run.record({"epsilon": private.account(run.step)})
            if run.due(config.checkpointing_steps):
                run.save()

            # Early stopping, once validation scores no longer improve
            if best and config.patience is not None and best.misses >= config.patience:
                run.say(f"{best.metric} on val has not improved for {best.misses} validations; stopping")
                break

            # Micro-batches of this step; there are none at the end of the run
            rows = list(batches)
            if not rows:
                break
            micros = [prepare_micro(config, train, captions, codes, batch, run) for batch in rows if len(batch.rows)]

            # Optimizer step on the negative log likelihood of the codes
            losses: list[Tensor] = []
            if private:  # the loss of the training images is private, so the journal does not have it
                private.put_gradients(
                    trained(plain), (model(*one).loss for micro in micros for one in one_by_one(micro))
                )
                private.account(run.step + 1)
                micros = []
            for micro in run.accumulate(model, micros):
                output = model(*micro)
                run.accelerator.backward(output.loss)
                losses += [output.loss, output.nll_B]
                run.note({"loss": output.loss, "bits_per_token": output.nll_B.mean() * BITS})
            norm = clip_gradients(plain)
            sound = run.judge(*losses, norm)
            if sound:
                optimizer.step()
                ema.update(merged.update(), run.images_per_step, run.images_seen + run.images_per_step)
            optimizer.zero_grad()
            run.note({"gradient_norm": norm})


if __name__ == "__main__":  # python -m t2i.train.prior
    run_program("train", "prior")
