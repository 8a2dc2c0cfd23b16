"""Classifies images and captions by logistic regression in the shared space of a dual encoder.

    t2i eval classify runs/cca --data shapes-2 --label shape
    t2i eval classify clip:vit-b-32 --data mirflickr:/path/to/mirflickr25k --label annotation

A classifier is fitted to the training images and another to their captions; each is scored on held-out images and on their
captions. The accuracy across sides measures how well the sides are aligned. docs/alignment.md lists the labels.
"""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t2i.align.classifier import correct_rows, fit_logistic, macro_f1
from t2i.cli import run_program
from t2i.console import shown_progress, table
from t2i.data import Dataset, View, open_dataset
from t2i.data.tools.labels import Labelled, Values, classes_of, labelled, values_of
from t2i.errors import InputError
from t2i.extractors import ImageTextExtractor, open_image_text
from t2i.files import refuse_unwritable
from t2i.hardware import prepare_cpu
from t2i.metrics import Features
from t2i.metrics.intervals import wilson
from t2i.metrics.score import Score, ScoreProtocol, rounded, score_row, write_scores
from t2i.names import counted
from t2i.scoring.images.collection import choose, images_of_rows
from t2i.scoring.leaks import refuse_leaks_of_encoder
from t2i.scoring.options import ClassifyOptions

CHUNK, VERSION = 500, 1
SIDES = ("image", "text")
DIRECTIONS = [(a, b) for a in SIDES for b in SIDES]


def open_split(options: ClassifyOptions, split: str, most: int | None, resolution: int) -> tuple[Dataset, Values]:
    """Opens a split, with up to `most` images if they are rendered, and returns it with the classes of its images."""
    view = View(resolution=resolution, limit=most if options.data.startswith("shapes-") else None)
    dataset = open_dataset(options.data, split, view)
    return dataset, values_of(dataset, options.label)


def chosen_rows(dataset: Dataset, values: Values, most: int | None) -> list[int]:
    """Returns up to `most` rows with known classes, spread over the split."""
    known = [row for row, own in enumerate(values) if own is not None]
    where = f"split {dataset.split} of {dataset.address}"
    if not known:
        raise InputError(f"{where} has no image with the label; name another split or label")
    if len(known) < len(values):
        warnings.warn(
            f"skipped {counted(len(values) - len(known), 'image')} without the label in {where}", stacklevel=2
        )
    if most is None or most >= len(known):
        return known
    return [known[k] for k in choose(len(known), most, where)]


def true_classes(dataset: Dataset, values: Values, rows: list[int], classes: tuple[str, ...]) -> Labelled:
    """Returns the classes of held-out rows; raises InputError if none of them is a class of the training split."""
    truth = labelled([values[row] for row in rows], classes)
    if not truth.has_NC.any():
        raise InputError(
            f"split {dataset.split} shares no class with split train, e.g. because classes are split; name another with --split"
        )
    return truth


def protocol_of(
    base: ScoreProtocol, options: ClassifyOptions, side: int, dataset: Dataset, rows: list[int]
) -> ScoreProtocol:
    """Adds a held-out split to the protocol; refuses rows that an align run was trained on, or records them as a leak.

    Args:
        side: pixels per side of the run's training images.
    """
    data = {"data": dataset.address, "data_digest": dataset.fingerprint(), "split": dataset.split}
    captions = [dataset.captions[row][0] for row in rows]
    if dataset.resolution != side:
        dataset = dataset.at(side)
    leak = refuse_leaks_of_encoder(options.run, images_of_rows(dataset, rows, captions), options.allow_leak)
    return replace(base, n_fake=len(rows), leak=leak, **data)


def features_of(extractor: ImageTextExtractor, dataset: Dataset, rows: list[int], tick: Any) -> dict[str, Features]:
    """Returns the features of images and of their first captions."""
    parts = []
    for start in range(0, len(rows), CHUNK):
        parts.append(extractor.features(dataset.images(rows[start : start + CHUNK])))
        tick(f"split {dataset.split}", min(start + CHUNK, len(rows)), len(rows))
    return {"image": np.concatenate(parts), "text": extractor.text_features([dataset.captions[row][0] for row in rows])}


def predictions(
    train: dict[str, Features], labels: Labelled, held_out: dict[str, Features], c: float
) -> dict[tuple[str, str], NDArray[np.bool_]]:
    """Returns the predicted classes of held-out rows in each direction.

    Each side is centred on its training mean and divided by the root mean square of all features. Scaling each feature would
    amplify those that the sides do not share.
    """
    means = {side: features.mean(axis=0) for side, features in train.items()}
    lengths = {side: float(np.sqrt(np.square(features - means[side]).mean())) for side, features in train.items()}

    def scaled(side: str, features: Features) -> Features:
        return (features - means[side]) / (lengths[side] + 1e-6)

    result = {}
    for side in SIDES:
        model = fit_logistic(scaled(side, train[side]), labels.has_NC, labels.is_single, c)
        result |= {(side, other): model.predict(scaled(other, held_out[other])) for other in SIDES}
    return result


def main(options: ClassifyOptions) -> None:
    refuse_unwritable(options.out, "a JSON file", "--out")
    prepare_cpu()
    # Encoder, and the classes and features of the training split
    extractor = open_image_text(options.run)
    resolution = options.resolution or extractor.side
    train, values = open_split(options, "train", options.train_n, resolution)
    rows = chosen_rows(train, values, options.train_n)
    classes = classes_of([values[row] for row in rows], f"label {options.label} of {train.address}, split train")
    labels = labelled([values[row] for row in rows], classes)
    base = ScoreProtocol(
        metric_version=VERSION,
        extractor=extractor.clip_name,
        extractor_digest=extractor.digest(),
        n_real=len(rows),
        captions="first",
        resize=extractor.resize,
        resolution=resolution,
        sampling=f"logistic regression, c {options.c:g}",
    )
    scores: list[Score] = []
    with shown_progress() as tick:
        features = features_of(extractor, train, rows, tick)

        # Scores of each held-out split in four directions
        for split in options.split:
            dataset, values = open_split(options, split, options.n, resolution)
            rows = chosen_rows(dataset, values, options.n)
            truth = true_classes(dataset, values, rows, classes)
            protocol = protocol_of(base, options, extractor.side, dataset, rows)
            predicted = predictions(features, labels, features_of(extractor, dataset, rows, tick), options.c)
            for direction in DIRECTIONS:
                scores += scores_of(options.label, direction, predicted[direction], truth, labels, protocol)

    # Scores on the terminal and as a file
    show(options.label, classes, scores)
    if options.out is not None:
        write_scores(options.out, scores)
        print(f"wrote {options.out}")


def scores_of(
    label: str,
    direction: tuple[str, str],
    predicted_NC: NDArray[np.bool_],
    truth: Labelled,
    labels: Labelled,
    protocol: ScoreProtocol,
) -> list[Score]:
    """Returns accuracy and macro F1 of one direction, with the accuracy of always predicting the most common classes."""
    name = f"{label}-{direction[0]}-to-{direction[1]}"
    correct = correct_rows(predicted_NC, truth.has_NC)
    rows, counts = np.unique(labels.has_NC, axis=0, return_counts=True)
    common = rows[int(counts.argmax())]
    chance = {"commonest": float((truth.has_NC == common).all(axis=1).mean())}
    accuracy, f1 = replace(protocol, metric=f"accuracy-{name}"), replace(protocol, metric=f"f1-{name}")
    return [
        Score(float(correct.mean()), accuracy, wilson(int(correct.sum()), len(correct)), "wilson", chance),
        Score(macro_f1(predicted_NC, truth.has_NC), f1),
    ]


def show(label: str, classes: tuple[str, ...], scores: list[Score]) -> None:
    """Prints a line for each direction and split."""
    lines = []
    for k in range(0, len(scores), 2):
        accuracy, f1 = scores[k], scores[k + 1]
        source, target = DIRECTIONS[k // 2 % len(DIRECTIONS)]
        _, value, interval, common = score_row(accuracy, ["commonest"])
        split = str(accuracy.protocol.split)
        lines.append([f"{source} -> {target}", split, value, interval, rounded(f1.value), common])
    print(f"{label}: {len(classes):,} classes, {counted(scores[0].protocol.n_real or 0, 'training image')}")
    table(("direction", "split", "accuracy", "95 % interval", "macro F1", "commonest"), lines)


if __name__ == "__main__":  # python -m t2i.eval.classify
    run_program("eval", "classify")
