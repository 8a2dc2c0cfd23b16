"""What the runs of a report draw: pictures for the same held-out captions, each one's best and worst, the nearest
training pictures.

The captions and the noise of each are those of `t2i eval score` with the same seed, so a picture of the page is one that was
scored. A tokenizer shows what becomes of the real pictures instead.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from t2i.data import View, open_dataset
from t2i.data.shapes.captions import Spec, parse
from t2i.data.shapes.oracle import judge, read
from t2i.errors import InputError
from t2i.extractors import ImageTextExtractor, open_image_text
from t2i.hardware import device
from t2i.images import ImageArray
from t2i.metrics import Features
from t2i.metrics.clip_score import clip_score
from t2i.metrics.neighbours import nearest, squared_distances
from t2i.metrics.score import Protocol
from t2i.pipeline import trained_with
from t2i.report.runs import ShownRun
from t2i.scoring.comparison import read_samples
from t2i.scoring.images.collection import Pictures, Tick, dataset_pictures
from t2i.scoring.images.extraction import LEAST_SIDE, Eye, look
from t2i.scoring.leaks import refuse_leaks
from t2i.scoring.options import Options
from t2i.scoring.trial import Trial
from t2i.seeding import key_of
from t2i.training.trained_on import RECORD, read_record

SHOWN = 12  # captions of each split, with what every run made of them
EXTREMES = 6  # pictures that are best, and as many that are worst
NEAR, NEIGHBOURS = 6, 3  # pictures that are nearest to the training data, and training pictures beside each
AT_ONCE = 32  # pictures between two words on the progress
JUDGED = ("shape", "colour", "size", "relation", "background")  # told apart where the number of objects is right


@dataclass(frozen=True)
class Ask:
    """What the pictures of a report are of.

    Attributes:
        data: address of the captioned pictures; None: what the first run was trained on.
        splits: None: `val`, and `heldout` where there is one; else `test`.
        n: pictures that each run draws; the best and worst are chosen among them where no score file knows more.
        train: training pictures among which neighbours are looked for, drawn by lot where there are more; 0: none are.
        scorer: address of the image-text encoder, as `t2i.extractors.open_image_text` takes it; None: the embedded one.
        seed: of the noise.
    """

    data: str | None = None
    splits: Sequence[str] | None = None
    n: int = 64
    train: int = 20_000
    scorer: str | None = None
    seed: int = 0


class Verdict(NamedTuple):
    """What the oracle of the embedded data reads in a picture."""

    right: bool
    words: str


class Judged(NamedTuple):
    """A picture and what is known of it."""

    image: ImageArray
    caption: str
    score: float | None = None
    verdict: Verdict | None = None


class Beside(NamedTuple):
    """Pictures of one split: the first captions, the real picture of each, and what each run made of it."""

    split: str
    data: str
    real: list[Judged]
    made: dict[str, list[Judged]]  # name of the run -> one a caption


class Extremes(NamedTuple):
    """The best and the worst pictures of a run by their scores, the very best and the very worst first."""

    among: str  # in words: how many pictures, of what, by which score
    best: list[Judged]
    worst: list[Judged]


class Near(NamedTuple):
    """A generated picture and the training pictures nearest to it, with their distances."""

    made: Judged
    training: list[tuple[Judged, float]]


class Neighbours(NamedTuple):
    """Those pictures of a run that are nearest to its training data."""

    among: str
    nearest: list[Near]
    median: float  # distance of all its pictures from their nearest training picture
    held_out: float  # the same of the real pictures of the captions


@dataclass
class Gallery:
    """All pictures of a page.

    Attributes:
        score: what the numbers beside pictures are, e.g. `clip-aligned`; of a tokenizer they are decibels of PSNR.
        notes: what a reader must know, a sentence each.
    """

    score: str
    beside: list[Beside] = field(default_factory=list)
    extremes: dict[str, Extremes] = field(default_factory=dict)
    neighbours: dict[str, Neighbours] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Says it on the page and on the console."""
        self.notes.append(text)
        warnings.warn(text, stacklevel=3)


class _Pool(NamedTuple):
    """The pictures of one split that a run made, with the real ones."""

    asked: Pictures
    real: list[ImageArray]
    made: list[ImageArray]
    scores: NDArray[np.float64]


def make_gallery(runs: Sequence[ShownRun], ask: Ask, tick: Tick) -> Gallery | None:
    """Draws and looks; None where no run makes pictures.

    Raises:
        InputError: the held-out captions, or the encoder, cannot be had.
    """
    makers = [run for run in runs if run.makes_pictures]
    if not makers:
        return None
    scorer = open_image_text(ask.scorer, device())
    gallery = Gallery(f"clip-{scorer.clip_name.removeprefix('clip-')}")
    address = ask.data or str(makers[0].data["address"])
    splits = _splits(address, makers[0], ask)
    for run in makers:
        if run.data["address"] != address:
            gallery.note(
                f"{run.name} was trained on {run.data['address']}, and the captions here are of {address}: "
                "their pictures do not compare"
            )
    for run in makers:
        if read_record(run.folder / RECORD) is None:
            gallery.note(
                f"{run.name} does not tell what it was trained on ({RECORD} is missing), so nothing says that these captions "
                "are new to it"
            )
    known: dict[str, NDArray] = {}
    for k, split in enumerate(splits):
        pools = {run.name: _pool(run, address, split, ask, SHOWN if k else ask.n, scorer, tick) for run in makers}
        gallery.beside.append(_beside(address, split, pools, scorer))
        for run in makers:
            pool = pools[run.name]
            _note_leaks(gallery, run, pool.asked)
            if k == 0:
                gallery.extremes[run.name] = _scored_before(run, ask) or _extremes(run, pool, gallery.score)
                if run.pipe is not None and ask.train:
                    _look_for_neighbours(gallery, run, pool, ask, scorer, tick, known)
    _note_scorer(gallery, makers, scorer)
    return gallery


# ---- whose captions ------------------------------------------------------------------------------------------------


def _splits(address: str, run: ShownRun, ask: Ask) -> list[str]:
    """The splits to show, each of which is there."""
    if ask.splits is not None:
        for split in ask.splits:
            open_dataset(address, split, _view(run))
        return list(ask.splits)
    found, problem = [], None
    for split in ("val", "heldout", "test"):
        try:
            # `heldout` of a folder stands for another split
            if not (split == "test" and found) and open_dataset(address, split, _view(run)).split == split:
                found.append(split)
        except InputError as error:
            problem = problem or error
    if not found:
        raise InputError(f"{problem or f'{address} holds no held-out split'}; or name other captions with --data")
    return found


def _view(run: ShownRun) -> View:
    return View(run.data["resolution"], run.data["fit"], None, run.data["split_seed"])


def _asked(run: ShownRun, address: str, split: str, n: int) -> Pictures:
    count = min(n, len(open_dataset(address, split, _view(run))))
    return dataset_pictures(address, split, count, _view(run))


def _note_leaks(gallery: Gallery, run: ShownRun, asked: Pictures) -> None:
    with warnings.catch_warnings(action="ignore"):
        found = refuse_leaks(run.folder, asked, None, allow=True)
    if found is not None:
        gallery.note(f"{run.name} was {found} shown here, split {asked.split}: to it they are not held out")


def _note_scorer(gallery: Gallery, runs: Sequence[ShownRun], scorer: ImageTextExtractor) -> None:
    """Where the encoder that judges is no judge."""
    drawn = all(parse(one.caption) for group in gallery.beside for one in group.real)
    if getattr(scorer, "embedded", False) and not drawn:
        gallery.note(
            f"the scores beside pictures are by {gallery.score}, which knows drawn shapes and says little of other "
            "pictures; name a CLIP folder with --scorer clip:DIR"
        )
    for run in runs:
        role = run.pipe and trained_with(run.pipe, None).get(scorer.digest())
        if role:
            gallery.note(f"{gallery.score} was the {role} of {run.name} in training, and flatters its pictures")


# ---- pictures ------------------------------------------------------------------------------------------------------


def _pool(run: ShownRun, address: str, split: str, ask: Ask, n: int, scorer: ImageTextExtractor, tick: Tick) -> _Pool:
    asked = _asked(run, address, split, n)
    captions = asked.captions or []
    real = [picture for chunk in asked.chunks(range(len(asked))) for picture in chunk]
    made: list[ImageArray] = []
    what, trial = f"{run.name} on {split}", _trial(run, asked, Options(seed=ask.seed))
    for start in range(0, len(asked), AT_ONCE):
        tick(what, start, len(asked))
        rows = range(start, min(start + AT_ONCE, len(asked)))
        made += _made(run, trial, rows, [real[k] for k in rows])
    tick(what, len(asked), len(asked))
    scores = psnr(made, real) if trial is None else _fit(scorer, made, captions)
    return _Pool(asked, real, made, scores)


def _trial(run: ShownRun, asked: Pictures, options: Options) -> Trial | None:
    return None if run.pipe is None else Trial(run.folder, run.pipe, asked, options, None)


def _made(run: ShownRun, trial: Trial | None, rows: Sequence[int], real: Sequence[ImageArray]) -> list[ImageArray]:
    if trial is not None:
        return [picture for chunk in trial.drawn(rows) for picture in chunk]
    assert run.tokenizer is not None
    return list(run.tokenizer.decode(run.tokenizer.encode(np.stack(real))))


def psnr(made: Sequence[ImageArray], real: Sequence[ImageArray]) -> NDArray[np.float64]:
    """[N] peak signal-to-noise ratio of each picture in decibels, at most 100."""
    errors = np.stack(made).astype(np.float64) - np.stack(real)
    return 10 * np.log10(255.0**2 / np.maximum(np.square(errors).mean(axis=(1, 2, 3)), 255.0**2 / 1e10))


def _fit(scorer: ImageTextExtractor, pictures: Sequence[ImageArray], captions: Sequence[str]) -> NDArray[np.float64]:
    """[N] 100 max(cos, 0) of each picture and its caption."""
    samples = clip_score(scorer.features(np.stack(pictures)), scorer.text_features(captions)).samples
    assert samples is not None
    return samples


def _beside(address: str, split: str, pools: Mapping[str, _Pool], scorer: ImageTextExtractor) -> Beside:
    first = next(iter(pools.values()))
    captions = (first.asked.captions or [])[:SHOWN]
    scores = _fit(scorer, first.real[:SHOWN], captions)
    return Beside(
        split,
        address,
        judged(first.real[:SHOWN], captions, scores.tolist()),
        {name: judged(pool.made[:SHOWN], captions, pool.scores[:SHOWN].tolist()) for name, pool in pools.items()},
    )


def judged(pictures: Sequence[ImageArray], captions: Sequence[str], scores: Sequence[float | None]) -> list[Judged]:
    """With the oracle's verdict where it understands the captions."""
    specs = [parse(caption) for caption in captions]
    verdicts: list[Verdict | None] = [None] * len(captions)
    if pictures and None not in specs and pictures[0].shape[0] >= LEAST_SIDE:
        found = judge(read(np.stack(pictures)), cast(list[Spec], specs))
        verdicts = [verdict({name: bool(flags[k]) for name, flags in found.items()}) for k in range(len(captions))]
    return [Judged(*one) for one in zip(pictures, captions, scores, verdicts, strict=True)]


def verdict(right: Mapping[str, bool]) -> Verdict:
    """In a few words what is wrong with a picture, as the oracle reads it."""
    if right["strict"]:
        return Verdict(True, "as asked")
    wrong = [name for name in JUDGED if not right[name]] if right["count"] else ["number of objects"]
    return Verdict(False, f"wrong {', '.join(wrong)}")


# ---- best and worst ------------------------------------------------------------------------------------------------


def _extremes(run: ShownRun, pool: _Pool, score: str) -> Extremes:
    by = "PSNR" if run.pipe is None else score
    among = f"of {len(pool.made):,} of {pool.asked.name} {pool.asked.split}, by {by}"
    return _chosen(among, pool.scores, pool.asked, lambda rows: [pool.made[k] for k in rows])


def _chosen(
    among: str, scores: NDArray[np.float64], asked: Pictures, made: Callable[[Sequence[int]], list[ImageArray]]
) -> Extremes:
    """Each picture is in one of the two, where there are few."""
    order = np.argsort(-scores, kind="stable").tolist()
    best = order[: min(EXTREMES, -(-len(order) // 2))]
    worst = order[len(best) :][::-1][:EXTREMES]
    captions = asked.captions or []
    rows = best + worst
    found = judged(made(rows), [captions[k] for k in rows], [float(scores[k]) for k in rows])
    return Extremes(among, found[: len(best)], found[len(best) :])


def _scored_before(run: ShownRun, ask: Ask) -> Extremes | None:
    """Among the pictures of a score file that tells what each scored: these are drawn again, if they still can be."""
    if run.pipe is None or ask.scorer is not None or ask.data is not None or ask.splits is not None:
        return None
    best: Extremes | None = None
    most = 0
    for file in run.scores:
        with suppress(InputError):  # its data has gone, or what lies beside it is damaged
            samples = read_samples(file.path)
            for score in file.scores:
                values, protocol = samples.values.get(score.name), score.protocol
                if protocol.metric != "clip" or values is None or len(values) <= most or np.isnan(values).any():
                    continue
                trial = _again(run, protocol, samples.prompts)
                if trial is not None:
                    among = (
                        f"of {len(values):,} of {protocol.data} {protocol.split}, by {score.name.rpartition('@')[0]}"
                    )
                    best = _chosen(among, values, trial.asked, lambda rows, t=trial: _made(run, t, rows, []))
                    most = len(values)
    return best


def _again(run: ShownRun, protocol: Protocol, prompts: NDArray[np.int64]) -> Trial | None:
    """What draws the very pictures that have this score; None: other weights, data or settings than are here now."""
    if protocol.split is None or protocol.seed is None or run.pipe is None:
        return None
    asked = dataset_pictures(protocol.data, protocol.split, protocol.n_fake, _view(run))
    trial = Trial(run.folder, run.pipe, asked, Options(seed=protocol.seed), None)
    same = np.array_equal([key_of(caption) for caption in asked.captions or []], prompts)
    return trial if same and trial.marked(protocol) == protocol else None


# ---- nearest training pictures -------------------------------------------------------------------------------------


def _look_for_neighbours(
    gallery: Gallery,
    run: ShownRun,
    pool: _Pool,
    ask: Ask,
    scorer: ImageTextExtractor,
    tick: Tick,
    known: dict[str, NDArray],
) -> None:
    try:
        training, all_of_them = _training(run, ask)
    except InputError as error:
        gallery.note(f"{run.name} has no neighbours here, for its training pictures cannot be read: {error}")
        return
    key = training.key()
    if key not in known:
        what = f"training pictures of {run.name}"
        known[key] = look(training, what, [Eye(scorer)], False, tick).features[scorer.digest()]
    made, real = (scorer.features(np.stack(pictures)) for pictures in (pool.made, pool.real))
    count = f"{len(training):,}" if len(training) == all_of_them else f"{len(training):,} of {all_of_them:,}"
    among = f"{count} training pictures, features of {scorer.name}"
    gallery.neighbours[run.name] = _neighbours(among, pool, training, made, real, known[key])


def _training(run: ShownRun, ask: Ask) -> tuple[Pictures, int]:
    """Training pictures, and how many there are in all."""
    own = run.data
    view = View(own["resolution"], own["fit"], own["limit"], own["split_seed"])
    count = len(open_dataset(own["address"], "train", view))
    return dataset_pictures(own["address"], "train", min(count, ask.train), view), count


def _neighbours(
    among: str, pool: _Pool, training: Pictures, made: Features, real: Features, train: Features
) -> Neighbours:
    ours, theirs = nearest(made, train)[1], nearest(real, train)[1]
    rows = np.argsort(ours, kind="stable")[:NEAR]
    distances = np.concatenate([block for _, _, block in squared_distances(made[rows], train)], axis=1)
    columns = np.argsort(distances, axis=1, kind="stable")[:, :NEIGHBOURS]
    wanted = sorted(set(columns.ravel().tolist()))
    looks = dict(zip(wanted, (picture for chunk in training.chunks(wanted) for picture in chunk), strict=True))
    captions, trained_on = pool.asked.captions or [], training.captions or []
    found = [
        Near(
            Judged(pool.made[row], captions[row]),
            [(Judged(looks[k], trained_on[k]), float(np.sqrt(distances[i, k]))) for k in columns[i].tolist()],
        )
        for i, row in enumerate(rows.tolist())
    ]
    return Neighbours(among, found, float(np.median(ours)), float(np.median(theirs)))
