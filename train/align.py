"""Trains a small dual encoder on captioned images (CLIP, Radford et al., 2021), which is used as text encoder and as scorer.

    t2i train align --data shapes-2 --run-dir runs/align
    t2i train align --config align-cca --data shapes-2 --run-dir runs/cca

The second command fits maps between two frozen encoders in seconds. With `image_weight`, the dual encoder also decodes images.

Other programs take the run directory as `text.path` or `guidance.path`. To resume, run the same command again.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from t2i import seeding
from t2i.align.config import Config, SubspaceAligner, SwapNegatives
from t2i.align.dual_encoder import Captioner, DualEncoder
from t2i.align.fitting import fitting_of
from t2i.align.frozen import TOKENIZER
from t2i.align.linear import Pairing
from t2i.align.mapped import MappedDualEncoder
from t2i.align.step import NOISE, Paired, Pairs, embed_all, micro_loss, parameter_groups
from t2i.align.tokenizer import CaptionTokenizer
from t2i.cli import run_program
from t2i.data import Dataset
from t2i.data.augment import warn_of_contradictions
from t2i.data.loader import Batch, Loader, RowLoader, choose_captions
from t2i.data.mixture import open_training
from t2i.data.shapes.captions import meaning
from t2i.data.swaps import exchanged
from t2i.data.tools.labels import class_numbers
from t2i.errors import InputError
from t2i.families import Source
from t2i.hardware import prepare_cpu
from t2i.images import ImageArray, grid, to_model, to_uint8
from t2i.metrics.reconstruction import psnr
from t2i.metrics.retrieval import binding, retrieval
from t2i.sampling.source import open_start
from t2i.training.conditioning import own_vocabulary, pooled_pairs, prepare_images, prepare_text
from t2i.training.initialise import Reads, initialise, refuse_unseen
from t2i.training.optimization import clip_gradients, cosine
from t2i.training.run import Run
from t2i.training.trained_on import remember
from t2i.training.validation import keep_best, note_validation, open_held_out_splits, oracle_names, oracle_scores

WAYS, RECALLS = ("text_to_image", "image_to_text"), (1, 5, 10)
CHUNK = 250  # pairs embedded or decoded at once in validation
SHOWN = 8  # pairs in the sample grid of the image decoder
FINAL_RATE = 0.02  # the cosine ends at this share of the peak learning rate


def open_splits(config: Config) -> tuple[Dataset, dict[str, Dataset]]:
    """Returns the training split and those held-out splits that the data has."""
    train = open_training(config.data, config.split, config.replayed)
    return train, open_held_out_splits(config.data, config.validation_n)


def prepare_tokenizer(config: Config, run: Run, train: Dataset) -> CaptionTokenizer:
    """Returns the run's tokenizer, which is fitted to the captions when the run starts and read from its file on resume."""
    captions = [caption for options in train.captions for caption in options]
    vocabulary, most = config.text_tower.vocabulary, config.text_tower.max_tokens
    text = own_vocabulary(run, TOKENIZER, lambda: CaptionTokenizer.fit(captions, vocabulary, most).json_text)
    tokenizer = CaptionTokenizer(text, most)
    tokenizer.warn_of_cut(captions, "text_tower.max_tokens")
    return tokenizer


@torch.no_grad()
def validate(
    dataset: Dataset, embed_images: Callable[[ImageArray], Tensor], embed_text: Callable[[Sequence[str]], Tensor]
) -> tuple[dict[str, float], dict[str, NDArray[np.float32]]]:
    """Returns retrieval scores among the rows of `dataset`, and the embeddings of its images and captions.

    Recall@1, 5 and 10 are computed in both directions; captions with the same meaning count as hits. `binding` is the share
    of images that are closer to their caption than to the same caption with two attributes exchanged.
    """
    captions = [options[0] for options in dataset.captions]
    parts = [range(start, min(start + CHUNK, len(dataset))) for start in range(0, len(dataset), CHUNK)]
    images = np.concatenate([embed_images(dataset.images(rows)).cpu().numpy() for rows in parts])

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        chunks = (texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK))
        return np.concatenate([embed_text(chunk).cpu().numpy() for chunk in chunks])

    texts, groups = embed(captions), [meaning(caption) for caption in captions]
    result = retrieval(images, texts, groups, groups, ks=RECALLS)
    scores = {f"{way}_recall@{k}": getattr(result, way).recall[k] for way in WAYS for k in RECALLS}
    swapped = exchanged(captions)
    rows = [row for row, text in enumerate(swapped) if text is not None]
    if rows:
        swapped_texts = embed([text for text in swapped if text is not None])
        scores["binding"] = binding(images[rows], texts[rows], swapped_texts).value
    return scores, {"image": images, "text": texts}


@torch.no_grad()
def validate_decoder(
    dataset: Dataset,
    decode: Callable[[Tensor], Tensor],
    embeddings: dict[str, NDArray[np.float32]],
    device: torch.device,
) -> tuple[dict[str, float], Image.Image]:
    """Scores images decoded from their own embedding (`image_`) and from that of their caption (`text_`).

    Returns:
        PSNR and, for rendered shapes, the oracle's strict score of both; and a sheet of images, first the real ones.
    """
    captions = [options[0] for options in dataset.captions]
    images = dataset.images(range(len(dataset)))
    starts = range(0, len(images), CHUNK)
    decoded = {
        side: np.concatenate([to_uint8(decode(torch.from_numpy(x[k : k + CHUNK]).to(device))) for k in starts])
        for side, x in embeddings.items()
    }
    scores = {f"{side}_psnr": float(psnr(made, images).mean()) for side, made in decoded.items()}
    for side, made in decoded.items():
        scores |= {f"{side}_{name}": value for name, value in oracle_scores(made, captions).items() if name == "strict"}
    count = min(SHOWN, len(images))
    labels = [*captions[:count], *["decoded from the image"] * count, *["decoded from the caption"] * count]
    shown = [image for part in (images, *decoded.values()) for image in part[:count]]
    return scores, grid(shown, labels, columns=count)


def validate_towers(
    model: DualEncoder, tokenizer: CaptionTokenizer, split: str, dataset: Dataset, run: Run
) -> dict[str, float]:
    """Returns the scores of the towers in training; saves a sheet of decoded images for `val` if there is a decoder."""

    def embed_images(images: ImageArray) -> Tensor:
        return model.embed_images(to_model(images).to(run.device))

    def embed_text(captions: Sequence[str]) -> Tensor:
        ids, mask, _ = tokenizer(captions)
        return model.embed_text(ids.to(run.device), mask.to(run.device))

    model.eval()
    scores, embeddings = validate(dataset, embed_images, embed_text)
    if model.image_decoder is not None:
        decoder_scores, sheet = validate_decoder(dataset, model.image_decoder, embeddings, run.device)
        scores |= decoder_scores
        if split == "val":
            run.save_samples(sheet)
    model.train()
    return scores


def score_names(config: Config, held_out: dict[str, Dataset]) -> list[str] | None:
    """Returns the names of the scores on val that the best weights can be chosen by; None if the data has no val."""
    if "val" not in held_out:
        return None
    names = [f"{way}_recall@{k}" for way in WAYS for k in RECALLS]
    if config.image_weight:
        oracle = {"strict"}.intersection(oracle_names([options[0] for options in held_out["val"].captions]))
        names += [f"{side}_{name}" for side in ("image", "text") for name in ("psnr", *oracle)]
    return names


def prepare_pairs(config: Config, train: Dataset, tokenizer: CaptionTokenizer, batch: Batch, run: Run) -> Pairs:
    """Moves the images, with a little noise added, and one caption of each to the device."""
    chosen = choose_captions(train, batch.rows, batch.sample_ids, config.seed)
    captions = [train.captions[row][k] for row, k in chosen]
    ids, mask, _ = tokenizer(captions)
    images = to_model(batch.images_BHWC.numpy()).to(run.device)
    images = images + NOISE * torch.randn_like(images)
    rows, keys = torch.from_numpy(batch.rows), torch.from_numpy(seeding.ids_of(captions))
    pairs = Pairs(images, *(x.to(run.device) for x in (ids, mask, rows, keys)))
    if not isinstance(config.negatives, SwapNegatives):
        return pairs
    swapped = exchanged(captions, batch.sample_ids.tolist(), config.seed)
    ids, mask, _ = tokenizer([text or "" for text in swapped])
    has_swap = torch.tensor([text is not None for text in swapped])
    ids, mask, has_swap = (x.to(run.device) for x in (ids, mask, has_swap))
    return pairs._replace(swapped_ids_BT=ids, swapped_mask_BT=mask, has_swap_B=has_swap)


def train_towers(config: Config, run: Run, train: Dataset, held_out: dict[str, Dataset], source: Source | None) -> None:
    """Trains both towers of a dual encoder."""
    # Tokenizer, both towers, a captioner that improves them (CoCa), and AdamW
    tokenizer = prepare_tokenizer(config, run, train)
    model = DualEncoder(config, len(tokenizer)).to(run.device)
    captioner = Captioner(config, len(tokenizer)).to(run.device)
    towers = {"model": model, "captioner": captioner}
    initialise(run, config, source, towers, Reads(vocabulary=tokenizer.json_text))
    both = Paired(model, captioner)
    optimizer = torch.optim.AdamW(
        parameter_groups(both, config.weight_decay), lr=config.learning_rate, betas=(0.9, 0.98)
    )

    # Parts of a checkpoint; the newest checkpoint is resumed
    run.register("model", model)
    run.register("captioner", captioner)
    run.register("optimizer", optimizer)
    best = keep_best(run, model.state_dict, config.best_metric, score_names(config, held_out))
    run.resume()

    # The model wrapped for the run's processes, and a loader that starts at the run's position
    paired = run.prepare(both, config.compile)
    reading = config.dataloader_num_workers, run.quarantine, config.data.augment
    loader = Loader(train, config.train_batch_size, config.seed, run.position, *reading)

    for batches in run.steps(loader, optimizer, schedule=cosine(config, FINAL_RATE)):
        # Validation, and a checkpoint
        if run.due(config.validation_steps):
            for split, dataset in held_out.items():
                scores = run.on_main(lambda: validate_towers(model, tokenizer, split, dataset, run))  # noqa: B023
                note_validation(run, scores, best if split == "val" else None, len(dataset), split)
        if run.due(config.checkpointing_steps):
            run.save()

        # Micro-batches of this step; there are none at the end of the run
        micros = [prepare_pairs(config, train, tokenizer, batch, run) for batch in batches]
        if not micros:
            break

        # Step on the contrastive loss of all pairs of the step and on the likelihood of captions
        known = embed_all(paired, micros) if len(micros) > 1 else []
        losses: list[Tensor] = []
        for number in run.accumulate(paired, range(len(micros))):
            loss, watch = micro_loss(paired, micros, number, known, config, run.num_processes)
            run.accelerator.backward(loss)
            losses.append(loss)
            run.note(watch)
        norm = clip_gradients(both)
        if run.judge(*losses, norm):
            optimizer.step()
        optimizer.zero_grad()
        run.note({"temperature": 1 / model.scale(), "gradient_norm": norm})


def align_frozen(config: Config, run: Run, train: Dataset, held_out: dict[str, Dataset]) -> None:
    """Fits maps between two frozen encoders."""
    if run.num_processes > 1 and not config.is_solved:
        raise InputError(
            f"aligner=adversarial trains on one process, and there are {run.num_processes}; start it without torchrun"
        )

    # Frozen encoders, features of pairs, and the fitting of maps
    assert config.text is not None and config.image is not None
    text, image = prepare_text(config.text, train, run), prepare_images(config.image, run)
    if config.is_solved:
        run.images_per_step = len(train)

    def read_pairs() -> Pairing:
        pairs = Pairing(*pooled_pairs(text, image, train, run, config.seed))
        label = config.aligner.label if isinstance(config.aligner, SubspaceAligner) else None
        return pairs if label is None else pairs._replace(class_N=class_numbers(train, label))

    fitting = fitting_of(config, read_pairs, run.device)

    # Parts of a checkpoint; the newest checkpoint is resumed
    run.register("model", fitting)
    for name, extra in fitting.parts.items():
        run.register(name, extra)
    run.resume()

    for batches in run.steps(RowLoader(train, config.train_batch_size, config.seed, run.position), *fitting.optimizers):
        # Validation, and a checkpoint
        if run.due(config.validation_steps):
            dual = MappedDualEncoder(config, text, image, fitting.state_tensors())
            for split, dataset in held_out.items():
                scores = run.on_main(lambda: validate(dataset, dual.images, dual.text)[0])  # noqa: B023
                note_validation(run, scores, None, len(dataset), split)
        if run.due(config.checkpointing_steps):
            run.save()

        # Optimizer step; there is no micro-batch at the end of the run
        micros = list(batches)
        if not micros:
            break
        losses = fitting.step(torch.from_numpy(micros[0].rows))
        run.judge(*losses.values(), torch.zeros(1))
        run.note(losses)


def main(config: Config, run_dir: Path) -> None:
    prepare_cpu()
    train, held_out = open_splits(config)

    with Run(run_dir, config, "align") as run:
        # Starting weights, and data with a record of it for later scores
        source = open_start(run, config)
        refuse_unseen(source, config.split)
        warn_of_contradictions(config.data, train)
        towers = [part.path for part in (config.text, config.image) if part is not None]
        remember(run, train, config.data, towers, start=source)
        run.identity.keep_held_out("val", held_out.get("val"))

        if config.is_frozen:
            align_frozen(config, run, train, held_out)
        else:
            train_towers(config, run, train, held_out, source)


if __name__ == "__main__":  # python -m t2i.train.align
    run_program("train", "align")
