"""Trains a reader, which captions images, scores the likelihood of captions and answers questions about images.

    t2i train reader --config reader-caption --data shapes-2 --run-dir runs/reader

`t2i read`, `t2i data caption` and `t2i eval score --reader` take the run directory. To resume, run the same command again.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from t2i import seeding
from t2i.align.frozen import TOKENIZER
from t2i.align.step import parameter_groups
from t2i.align.tokenizer import CaptionTokenizer
from t2i.cli import run_program
from t2i.data import Dataset, open_dataset
from t2i.data.augment import warn_of_contradictions
from t2i.data.loader import Batch, Loader, choose_captions
from t2i.data.questions import Question, questions_about_label, questions_of
from t2i.errors import InputError
from t2i.hardware import prepare_cpu
from t2i.images import to_model
from t2i.names import counted
from t2i.reader.config import Config, OwnImageConfig
from t2i.reader.gpt2 import GPT2, open_gpt2
from t2i.reader.network import ReaderNetwork, Tokens
from t2i.reader.reading import Reader
from t2i.reader.scores import answer_scores, caption_scores, known_questions
from t2i.reader.step import NOISE, Losses, QuestionBatch, ReaderMicro
from t2i.reader.vocabulary import Vocabulary
from t2i.sampling.source import open_start
from t2i.text import TextConfig, TextEncoder, fit_encoder, load_encoder
from t2i.training.conditioning import own_copy, own_vocabulary, prepare_images
from t2i.training.initialise import Reads, initialise, refuse_unseen
from t2i.training.optimization import clip_gradients, cosine
from t2i.training.run import Run
from t2i.training.trained_on import remember
from t2i.training.validation import keep_best, note_validation, open_held_out_splits

QUESTIONED = 10_000  # maximum number of images whose questions words and answers are collected from
FINAL_RATE = 0.02  # the cosine ends at this share of the peak learning rate

Questions = Sequence[Sequence[Question]]


class TrainingData(NamedTuple):
    """The sources of a run's batches."""

    train: Dataset
    questions: Questions  # of each image; empty if the reader does not learn to answer
    labels: Questions  # the question about the class of each image; empty if the reader does not learn a label
    reader: Reader


def prepare_questions(config: Config, dataset: Dataset) -> tuple[Questions, Questions]:
    """Returns the questions of each image of a split, and those about its class; () for a task that is not learned."""
    questions = questions_of(dataset) if config.tasks.answer else ()
    return questions, questions_about_label(dataset, config.label) if config.label is not None else ()


def first_questions(questions: Questions) -> list[Question]:
    """Returns the questions about the first QUESTIONED images."""
    return [question for row in range(min(len(questions), QUESTIONED)) for question in questions[row]]


def texts_of(questions: Questions, labels: Questions) -> list[str]:
    """Returns the texts of the first questions, and that of the question about a label, which is the same for all images."""
    return [question.text for question in (*first_questions(questions), *next(filter(None, labels), ()))]


def prepare_vocabulary(
    config: Config, run: Run, train: Dataset, questions: Questions, labels: Questions, gpt2: GPT2 | None
) -> Vocabulary:
    """Returns the tokenizer of captions and questions, and the most frequent answers and all classes in alphabetical order."""
    counts = Counter(answer for question in first_questions(questions) for answer in question.answers)
    classes = {answer for own in labels for question in own for answer in question.answers}
    answers = tuple(sorted({answer for answer, _ in counts.most_common(config.answers)} | classes))
    if config.tasks.answers and len(answers) < 2:
        raise InputError(
            f"the questions or labels of {train.address} have {counted(len(answers), 'answer')}; at least two are "
            "needed to choose from"
        )

    texts = [caption for options in train.captions for caption in options] if config.tasks.caption else []
    texts += texts_of(questions, labels)

    def fit() -> str:
        if gpt2 is not None:
            return gpt2.tokenizer
        return CaptionTokenizer.fit(texts, config.vocabulary, config.max_tokens).json_text

    text = own_vocabulary(run, TOKENIZER, fit)
    if gpt2 is None:
        tokenizer, shape = CaptionTokenizer(text, config.max_tokens), None
    else:
        tokenizer, shape = CaptionTokenizer(text, gpt2.shape[0], (gpt2.end, gpt2.end, gpt2.end)), gpt2.shape
    tokenizer.warn_of_cut(texts, "max_tokens")
    return Vocabulary(tokenizer, answers, shape, config.label or "", bool(config.tasks.answer))


def prepare_text(
    config: Config, run: Run, train: Dataset, questions: Questions, labels: Questions
) -> TextEncoder | None:
    """Returns the run's copy of the frozen encoder of questions; None if the reader trains its own."""
    text = config.text
    if not config.tasks.answers or not isinstance(text, TextConfig):
        return None
    texts = [*texts_of(questions, labels), *(caption for options in train.captions for caption in options)]
    return own_copy(run, "text", text.path, lambda: fit_encoder(text, texts), lambda e, to: e.save(to), load_encoder)


def draw_questions(
    config: Config, data: TrainingData, questions: Questions, batch: Batch, run: Run
) -> QuestionBatch | None:
    """Draws questions about each image among those with a known answer, and the credit of each answer; None without questions."""
    if not questions:
        return None
    chosen, images, place = [], [], {answer: k for k, answer in enumerate(data.reader.answers)}
    draws = seeding.hash64(config.seed, "questions", batch.sample_ids, 1)[:, 0].tolist()
    for number, (row, start) in enumerate(zip(batch.rows.tolist(), draws, strict=True)):
        known = [question for question in questions[row] if place.keys() & question.answers.keys()]
        order = seeding.permutation(start, 0, len(known)).tolist()[: config.questions_per_image]
        chosen += [known[k] for k in order]
        images += [number] * len(order)
    if not chosen:  # no image of the batch has a known answer
        chosen, images = [Question("?", {})], [0]
    target = torch.zeros(len(chosen), len(place))
    for k, question in enumerate(chosen):
        for answer, credit in question.answers.items():
            if answer in place:
                target[k, place[answer]] = credit
    target = target / target.sum(dim=1, keepdim=True).clamp(min=torch.finfo(target.dtype).tiny)
    text = data.reader.words([question.text for question in chosen])
    return QuestionBatch(text, torch.tensor(images, device=run.device), target.to(run.device))


def prepare_micro(config: Config, data: TrainingData, batch: Batch, run: Run) -> ReaderMicro:
    """Moves images with a little noise added to the device, with a caption and some questions for each."""
    images = to_model(batch.images_BHWC.numpy()).to(run.device)
    images = images + NOISE * torch.randn_like(images)
    captions = None
    if config.tasks.caption:
        chosen = choose_captions(data.train, batch.rows, batch.sample_ids, config.seed)
        ids, mask, _ = data.reader.tokenizer([data.train.captions[row][k] for row, k in chosen])
        captions = Tokens(ids.to(run.device), mask.to(run.device))
    asked = (draw_questions(config, data, questions, batch, run) for questions in (data.questions, data.labels))
    return ReaderMicro(images, captions, *asked)


def validate(config: Config, reader: Reader, dataset: Dataset) -> dict[str, float]:
    """Returns the reader's scores on a held-out split."""
    images, scores = dataset.images(range(len(dataset))), {}
    reader.network.eval()
    if config.tasks.caption:
        scores |= caption_scores(reader, images, [options[0] for options in dataset.captions])
    if config.tasks.answers:
        scores |= answer_scores(reader, images, known_questions(reader, dataset))
    reader.network.train()
    return scores


def score_names(config: Config, held_out: dict[str, Dataset]) -> list[str] | None:
    """Returns the names of the scores on val that the best weights can be chosen by; None if the data has no val."""
    if "val" not in held_out:
        return None
    return [*["caption_nll", "caption_strict"] * bool(config.tasks.caption), *["answers"] * config.tasks.answers]


def main(config: Config, run_dir: Path) -> None:
    prepare_cpu()
    train = open_dataset(config.data.address, config.split, config.data.view(config.data.limit))
    held_out = open_held_out_splits(config.data, config.validation_n)

    with Run(run_dir, config, "reader") as run:
        # Starting weights, captions, questions, and a record of the data for later scores
        source = open_start(run, config)
        refuse_unseen(source, config.split)
        warn_of_contradictions(config.data, train)
        questions, labels = prepare_questions(config, train)
        for dataset in held_out.values():  # data that a validation would refuse
            prepare_questions(config, dataset)
        remember(run, train, config.data, [config.image.path, config.text.path], start=source)

        # Vocabulary, and the frozen networks that the reader is built on
        gpt2 = open_gpt2(config.decoder.path, config.max_tokens) if config.decoder.path else None
        vocabulary = prepare_vocabulary(config, run, train, questions, labels, gpt2)
        text = prepare_text(config, run, train, questions, labels)
        encoder = None if isinstance(config.image, OwnImageConfig) else prepare_images(config.image, run)

        # The reader and AdamW
        network = ReaderNetwork(config, vocabulary.sizes(text), encoder)
        if gpt2 is not None and network.captions is not None:
            gpt2.fill(network.captions)
        network = network.to(run.device)
        reads = Reads(text, vocabulary=vocabulary.tokenizer.json_text, answers=vocabulary.answers)
        initialise(run, config, source, {"model": network}, reads)
        reader = Reader(config.data, vocabulary, network, text)
        losses_of = Losses(network, config.tasks)
        groups = parameter_groups(network, config.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))

        # Parts of a checkpoint; the newest checkpoint is resumed
        run.register("model", network)
        run.register("optimizer", optimizer)
        best = keep_best(run, network.state_dict, config.best_metric, score_names(config, held_out))
        run.resume()
        run.extra["reader"] = vocabulary.kept()

        # The reader wrapped for the run's processes, and a loader that starts at the run's position
        shared = run.prepare(losses_of, config.compile)
        data = TrainingData(train, questions, labels, reader)
        reading = config.dataloader_num_workers, run.quarantine, config.data.augment
        loader = Loader(train, config.train_batch_size, config.seed, run.position, *reading)

        for batches in run.steps(loader, optimizer, schedule=cosine(config, FINAL_RATE)):
            # Validation, and a checkpoint
            if run.due(config.validation_steps):
                for split, dataset in held_out.items():
                    scores = run.on_main(lambda: validate(config, reader, dataset))  # noqa: B023
                    note_validation(run, scores, best if split == "val" else None, len(dataset), split)
            if run.due(config.checkpointing_steps):
                run.save()

            # Micro-batches of this step; there are none at the end of the run
            micros = [prepare_micro(config, data, batch, run) for batch in batches]
            if not micros:
                break

            # Optimizer step on the weighted losses of all tasks
            losses: list[Tensor] = []
            for micro in run.accumulate(shared, micros):
                loss, parts = shared(micro)
                run.accelerator.backward(loss)
                losses.append(loss)
                run.note({"loss": loss.detach(), **parts})
            norm = clip_gradients(network)
            if run.judge(*losses, norm):
                optimizer.step()
            optimizer.zero_grad()
            run.note({"gradient_norm": norm})


if __name__ == "__main__":  # python -m t2i.train.reader
    run_program("train", "reader")
