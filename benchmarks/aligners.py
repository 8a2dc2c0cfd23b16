"""Compares aligners of frozen features on rendered shapes: Recall@1 among 1,000 held-out pairs.

    python benchmarks/aligners.py shapes-2

Prints a row for each aligner, text encoder and number of pairs, with the CPU seconds of the fit; features are computed once.
LOG.md has the figures.
"""

import sys
import time
import warnings

import numpy as np
import torch

from t2i.align.config import AdversarialAligner, Config
from t2i.align.fitting import fitting_of
from t2i.align.linear import LinearMaps, Pairing, principal_axes
from t2i.align.mapped import FIELDS
from t2i.data import View, open_dataset
from t2i.data.shapes.captions import meaning
from t2i.data.swaps import exchanged
from t2i.extractors import open_image_encoder
from t2i.metrics.retrieval import binding, retrieval
from t2i.text import TextConfig, fit_encoder

SIZES = {"train": 6000, "val": 1000, "heldout": 1000}
HELD_OUT = ("val", "heldout")


class Bench:
    """Features of one text and one image encoder on all splits, and scores of maps between them."""

    def __init__(self, data: dict, images: dict[str, np.ndarray], text: str) -> None:
        self.images = images
        self.captions = {split: [own[0] for own in dataset.captions] for split, dataset in data.items()}
        self.groups = {split: [meaning(caption) for caption in own] for split, own in self.captions.items()}
        self.encoder = fit_encoder(TextConfig(encoder=text), self.captions["train"])  # type: ignore[arg-type]
        self.text = {split: self.encode(own) for split, own in self.captions.items()}
        number = {caption: k for k, caption in enumerate(dict.fromkeys(self.captions["train"]))}
        self.wording = np.array([number[caption] for caption in self.captions["train"]])

    def encode(self, captions: list[str]) -> np.ndarray:
        return self.encoder.encode(captions).pooled_BP.double().numpy()

    def pairs(self, count: int) -> Pairing:
        return Pairing(self.text["train"][:count], self.images["train"][:count], self.wording[:count])

    def row(self, name: str, maps: LinearMaps, seconds: float) -> None:
        shown = []
        for split in HELD_OUT:
            images, text = maps.image(self.images[split]), maps.text(self.text[split])
            found = retrieval(images, text, self.groups[split], self.groups[split], ks=(1,))
            shown.append(f"{found.text_to_image.recall[1]:.3f} / {found.image_to_text.recall[1]:.3f}")
            swapped = exchanged(self.captions[split])
            rows = [k for k, caption in enumerate(swapped) if caption is not None]
            if rows and split == "val":
                others = maps.text(self.encode([swapped[k] or "" for k in rows]))
                bound = binding(images[rows], text[rows], others).value
        print(f"| {name} | {shown[0]} | {shown[1]} | {bound:.3f} | {seconds:.2f} |", flush=True)

    def fit(self, name: str, pairs: Pairing, steps: int | None = None, **config: object) -> None:
        started = time.process_time()
        checked = Config.model_validate({"aligner": config})
        torch.manual_seed(0)
        fitting = fitting_of(checked, lambda: pairs, torch.device("cpu"))
        for optimizer in fitting.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = checked.learning_rate
        for step in range(checked.max_train_steps if steps is None else steps):
            torch.manual_seed(step)
            fitting.step(torch.from_numpy(np.random.default_rng((0, step)).integers(0, 6000, 256)))
        tensors = fitting.state_tensors()
        self.row(
            name, LinearMaps(*(tensors[key].double().numpy() for key in FIELDS[:4])), time.process_time() - started
        )


def encode_images(data: dict, name: str) -> dict[str, np.ndarray]:
    started, encoder = time.process_time(), open_image_encoder(name)
    found = {
        split: encoder.encode(own.images(range(len(own)))).pooled_BP.double().numpy() for split, own in data.items()
    }
    print(
        f"\nimages by {name}: {encoder.pooled_dim} features, {time.process_time() - started:.1f} CPU s for 8,000\n",
        flush=True,
    )
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    data = {split: open_dataset(sys.argv[1], split, View(32, limit=size)) for split, size in SIZES.items()}
    head = (
        "| aligner, text, pairs | R@1 val, to image / to text | heldout | binding val | CPU s |\n|---|---|---|---|---|"
    )
    images = encode_images(data, "aligned")
    print(head)
    benches = {text: Bench(data, images, text) for text in ("bow", "tfidf", "word2vec")}
    for text, bench in benches.items():
        whole = bench.pairs(6000)
        text_mean, text_NP, image_mean, image_NQ = whole.centred()
        axes = [principal_axes(side, 128) for side in (text_NP, image_NQ)]
        shared = min(x.shape[1] for x in axes)
        bench.row(
            f"A = Vt' Vs, no pairs, {text}",
            LinearMaps(text_mean, axes[0][:, :shared], image_mean, axes[1][:, :shared]),
            0.0,
        )
        for kind in ("procrustes", "ridge", "subspace", "cca"):
            bench.fit(f"`{kind}`, {text}, 6,000", whole, kind=kind)
    bow = benches["bow"]
    for count in (50, 200, 500, 2000):
        for kind in ("procrustes", "cca"):
            bow.fit(f"`{kind}`, bow, {count:,}", bow.pairs(count), kind=kind)
    for anchors in (0, 50, 200):
        for game in (False, True):
            # without the game: from the anchors straight to the refinement
            aligner = AdversarialAligner(anchors=anchors, **({} if game else {"hidden": 8})).model_dump()
            name = f"`adversarial`, bow, {anchors} of 6,000" + ("" if game else ", refinement alone")
            bow.fit(name, bow.pairs(6000), steps=None if game else 0, **aligner)
    images = encode_images(data, "classical")
    print(head)
    plain = Bench(data, images, "bow")
    for kind in ("procrustes", "ridge", "cca"):
        plain.fit(f"`{kind}`, bow, 6,000", plain.pairs(6000), kind=kind)


if __name__ == "__main__":
    main()
