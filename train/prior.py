"""Trains an autoregressive prior over the codes of a trained tokenizer, conditioned by a frozen text encoder.

    t2i train prior --config prior-tiny --set tokenizer.path=runs/vqvae --set text.path=runs/align --run-dir runs/prior
    torchrun --nproc_per_node 2 -m t2i.cli train prior --config prior-tiny ...

Codes and text features are computed once and kept in the cache. The directory holds all that `t2i sample` and `t2i eval`
need. To resume, run the same command again.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from t2i import seeding
from t2i.cli import run_program
from t2i.data import Dataset, open_dataset
from t2i.data.caption_checks import may_flip, warn_of_crops
from t2i.data.loader import RowLoader, Rows
from t2i.errors import InputError
from t2i.families import ImageTokenizer, load_tokenizer, save_tokenizer
from t2i.hardware import prepare_cpu
from t2i.images import grid
from t2i.prior.config import Config
from t2i.prior.decoding import decode
from t2i.prior.orders import Order, training_order
from t2i.prior.transformer import Draws, Grid, Prior
from t2i.text import TextEncoder, TextFeatures
from t2i.training.codes import CachedCodes, encode_codes
from t2i.training.conditioning import Captions, own_copy, prepare_captions, prepare_text
from t2i.training.optimization import EMA, NonFiniteGuard, learning_rate, set_learning_rate
from t2i.training.run import Run, now_and_then
from t2i.training.trained_on import remember
from t2i.training.validation import CHUNK, HeldOut, keep_best, note_validation, open_held_out

MEASURED = 1000  # held-out pictures whose likelihood is measured; fewer are drawn
SHOWN, MEASURED_AT_ONCE = 24, 50  # prompts of the sample grid; pictures whose likelihood is measured at once
BITS = float(np.log2(np.e))


class Micro(NamedTuple):
    """One micro-batch, on the device."""

    codes_BS: Tensor
    text: TextFeatures
    order: Order | None
    draws: Draws


class Validation(NamedTuple):
    """One held-out split: captions with their features, the codes of their pictures, and those of it that are drawn."""

    held_out: HeldOut
    text: TextFeatures
    codes_BS: Tensor


def prepare_tokenizer(config: Config, run: Run) -> ImageTokenizer:
    """The run's own copy of the tokenizer, made when the run starts."""
    path = config.tokenizer.path
    tokenizer = own_copy(run, "tokenizer", path, lambda: load_tokenizer(Path(path)), save_tokenizer, load_tokenizer)
    if tokenizer.resolution != config.data.resolution:
        raise InputError(
            f"data.resolution is {config.data.resolution}, but the tokenizer {config.tokenizer.path} codes pictures of "
            f"{tokenizer.resolution} px; set data.resolution={tokenizer.resolution}, or train another tokenizer"
        )
    top_k = config.sampling.top_k
    if top_k is not None and top_k > tokenizer.codebook_size:
        raise InputError(
            f"sampling.top_k {top_k} is more than the {tokenizer.codebook_size} codes; lower it, or set null"
        )
    tokenizer.to(run.device)
    return tokenizer


def prepare_codes(tokenizer: ImageTokenizer, dataset: Dataset, mirrored: bool, run: Run) -> CachedCodes:
    codes = encode_codes(
        tokenizer, dataset, mirrored, rank=run.process_index, processes=run.num_processes,
        wait=run.accelerator.wait_for_everyone, on_progress=now_and_then(run, f"encoding pictures ({dataset.split})"),
    )  # fmt: skip
    for entry in codes.broken:
        run.quarantine(entry)
    run.say(f"codes of {dataset.split}: {codes.hits:,} pictures from the cache, {codes.misses:,} encoded now")
    return codes


def prepare_validation(config: Config, encoder: TextEncoder, tokenizer: ImageTokenizer, run: Run) -> Validation | None:
    """Pictures of `val` with one caption each; None where the data has no such split."""
    dataset = open_held_out(config.data, "val", max(MEASURED, config.validation_n))
    if dataset is None:
        return None
    codes = prepare_codes(tokenizer, dataset, False, run)
    rows = np.arange(len(dataset))
    shown = codes.shown(rows).tolist()
    prompts = [str(dataset.captions[row][0]) for row in shown]
    drawn = slice(config.validation_n)
    held_out = HeldOut(dataset, prompts[drawn], shown[drawn], config.validation_extractor, run.device)
    return Validation(held_out, encoder.encode(prompts), codes.at(rows, np.zeros_like(rows)).flatten(1))


@torch.no_grad()
def bits_per_token(model: Prior, validation: Validation, device: torch.device) -> float:
    """Mean NLL of held-out codes given their captions, each slot given all before it in raster or a fixed random order."""
    nll = []
    for start in range(0, len(validation.codes_BS), MEASURED_AT_ONCE):
        rows = slice(start, start + MEASURED_AT_ONCE)
        codes = validation.codes_BS[rows].to(device)
        order = None
        if model.query is not None:
            uniforms = seeding.uniform(0, "validation/order", np.arange(start, start + len(codes)), codes.shape[1])
            order = Order(torch.from_numpy(uniforms).argsort(dim=1).to(device), (1,) * codes.shape[1])
        nll.append(model(codes, TextFeatures(*(x[rows].to(device) for x in validation.text)), order).nll_B)
    return float(torch.cat(nll).mean()) * BITS


def validate(model: Prior, validation: Validation, tokenizer: ImageTokenizer, run: Run) -> dict[str, float]:
    """Bits per token, and held-out prompts drawn with fixed seeds at the run's own settings."""
    prompts, drawn = validation.held_out.captions, []
    for rows in (range(len(prompts))[start : start + CHUNK] for start in range(0, len(prompts), CHUNK)):
        text = TextFeatures(*(x[rows] for x in validation.text))
        codes = decode(model, text, rows, model.config.sampling)
        drawn.append(tokenizer.decode(codes.view(len(codes), -1, tokenizer.codebooks)))
    images = np.concatenate(drawn)
    (run.directory / "samples").mkdir(exist_ok=True)
    sheet = grid(list(images[:SHOWN]), prompts[:SHOWN], columns=6)
    sheet.save(run.directory / "samples" / f"step-{run.step:08d}.png")
    return {"bits_per_token": bits_per_token(model, validation, run.device)} | validation.held_out.scores(images)


def prepare_micro(
    config: Config, train: Dataset, captions: Captions, codes: CachedCodes, batch: Rows, step: int, device: torch.device
) -> Micro:
    """Codes and captions of one micro-batch with all its random draws."""
    seed, ids = config.seed, batch.sample_ids
    index = captions.chosen(train, codes.shown(batch.rows), ids, seed)
    views = (seeding.uniform(seed, "flip", ids, 1)[:, 0] < 0.5).astype(np.int64) * config.flip
    codes_BS = codes.at(batch.rows, views).flatten(1)
    slots = codes_BS.shape[1]
    caption = seeding.uniform(seed, "caption_dropout", ids, 1)[:, 0]
    token = seeding.uniform(seed, "token_dropout", ids, slots)
    order = None
    if config.order == "random":
        uniforms = torch.from_numpy(seeding.uniform(seed, "order", ids, slots))
        groups = seeding.uniform(seed, "groups", [step], 2)[0].tolist()
        order = training_order(uniforms.to(device), groups)
    draws = Draws(torch.from_numpy(caption).to(device), torch.from_numpy(token).to(device))
    text = TextFeatures(*(x.to(device) for x in captions.text.rows(index)))
    return Micro(codes_BS.to(device), text, order, draws)


def parameter_groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Weight decay for the matrices of linear layers; none for gains and embeddings."""
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    decayed = [p for p in model.parameters() if id(p) in matrices]
    rest = [p for p in model.parameters() if id(p) not in matrices]
    return [{"params": decayed, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]


def main(config: Config, run_dir: Path) -> None:
    prepare_cpu()
    train = open_dataset(config.data.address, "train", config.data.view(config.data.limit))

    with Run(run_dir, config, "prior") as run:
        warn_of_crops(config.data.fit, train)
        config = config.model_copy(update={"flip": may_flip(config.flip, train)})
        remember(run, train, config.data, [config.tokenizer.path, config.text.path])
        tokenizer = prepare_tokenizer(config, run)
        encoder = prepare_text(config.text, train, run)
        captions = prepare_captions(encoder, train, run, tokens=True)
        codes = prepare_codes(tokenizer, train, config.flip, run)
        validation = prepare_validation(config, encoder, tokenizer, run)

        shape = Grid(tokenizer.grid, tokenizer.grid, tokenizer.codebooks, tokenizer.codebook_size)
        plain = Prior(config, shape, encoder.token_dim, encoder.pooled_dim, encoder.max_tokens).to(run.device)
        ema = EMA(plain, config.ema_halflife_images, config.ema_ramp)
        optimizer = torch.optim.AdamW(
            parameter_groups(plain, config.weight_decay), config.learning_rate, betas=(0.9, config.adam_beta2)
        )
        for name, part in {"model": plain, "ema": ema, "optimizer": optimizer}.items():
            run.register(name, part)
        names = ("bits_per_token", *validation.held_out.names) if validation else ()
        best = keep_best(run, ema.state_tensors, config.best_metric, names)
        run.resume()
        model = run.prepare(plain, config.compile)
        run.extra["grid"] = list(shape)

        place = (run.images_seen, run.process_index, run.num_processes)
        loader = RowLoader(len(train), config.train_batch_size, config.seed, *place)
        guard = NonFiniteGuard(run.rollback)

        def waited_enough() -> bool:
            return best is not None and config.patience is not None and best.misses >= config.patience

        while run.step < run.total_steps and not waited_enough() and not run.stopping():
            lr = learning_rate(
                run.step, run.total_steps, config.learning_rate, config.lr_warmup_steps, config.lr_final_factor
            )
            set_learning_rate(optimizer, lr)
            batches = [next(loader) for _ in range(config.gradient_accumulation_steps)]
            total = torch.zeros(2, device=run.device)
            for i, batch in enumerate(batches):
                micro = prepare_micro(config, train, captions, codes, batch, run.step, run.device)
                with nullcontext() if i == len(batches) - 1 else run.accelerator.no_sync(model):
                    made = model(*micro)
                    run.accelerator.backward(made.loss)
                total += torch.stack([made.loss.detach(), made.nll_B.mean()]) / len(batches)
            norm = nn.utils.clip_grad_norm_(plain.parameters(), config.max_grad_norm)
            sound = guard.check(run.all_finite(total, norm), run.step, batches[0].sample_ids.tolist())
            if sound:
                optimizer.step()
            optimizer.zero_grad()

            images = config.train_batch_size * len(batches) * run.num_processes
            run.advance(images)
            if sound:
                ema.update(plain, images, run.images_seen)
            bits = total[1] * BITS
            run.note({"loss": total[0], "bits_per_token": bits, "gradient_norm": norm, "learning_rate": lr})

            if validation and run.due(config.validation_steps):
                found = run.on_main(lambda: validate(ema.module, validation, tokenizer, run))  # type: ignore[arg-type]
                note_validation(run, found, best)
                if best and waited_enough():
                    run.say(
                        f"{best.metric} on val: no better for {best.misses} validations: stopping with the best weights"
                    )
            if run.due(config.checkpointing_steps):
                run.save()


if __name__ == "__main__":  # python -m t2i.train.prior
    run_program("train", "prior")
