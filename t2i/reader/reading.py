"""Uses a trained reader, or the captioner of a `t2i train align` run, to write captions, score them and answer questions.

    from t2i import Reader
    reader = Reader.from_pretrained("runs/reader")
    reader.caption(["a.png", "b.png"])
    reader.answer(["a.png"], ["what colour is the star?"])

Axes: B images, L cells, D width, T tokens, A answers.
"""

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from t2i import checkpoint, images
from t2i.align.config import Config as AlignConfig
from t2i.align.dual_encoder import Captioner, DualEncoder
from t2i.align.frozen import TOKENIZER
from t2i.data import DataConfig
from t2i.data.captions import clean_caption
from t2i.data.questions import normal_answer
from t2i.errors import InputError, reason_of
from t2i.extractors import load_image_encoder
from t2i.files import at_home, read_utf8
from t2i.images import ImageArray, to_model
from t2i.names import counted, verb
from t2i.reader.config import Config
from t2i.reader.decoding import write
from t2i.reader.network import ReaderNetwork, Tokens
from t2i.reader.vocabulary import Vocabulary, read_tokenizer
from t2i.reader.writers import AlignedReader, CaptionerWriter, DecoderWriter
from t2i.tensors import hash_values
from t2i.text import TextEncoder, TextFeatures, load_encoder
from t2i.trained import TrainedRun, open_run

BATCH = 64  # images or questions in one batch
FAMILIES = ("reader", "align")

AnyImage = ImageArray | Image.Image | Path | str


class Reader:
    """A reader of images of any size, which are cropped and scaled like its training images."""

    def __init__(
        self,
        data: DataConfig,
        vocabulary: Vocabulary,
        network: ReaderNetwork | AlignedReader,
        text: TextEncoder | None = None,
        name: str = "reader",
    ) -> None:
        """
        Args:
            text: the frozen encoder of questions; None: the network has its own.
            name: its name in messages.
        """
        self.data, self.vocabulary, self.network, self.name = data, vocabulary, network, name
        self.tokenizer, self.resolution = vocabulary.tokenizer, data.resolution
        self._text = text

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "cpu") -> "Reader":
        """Opens a run of `t2i train reader`, or the captioner of a run of `t2i train align`.

        Raises:
            InputError: the run does not exist, belongs to another family, or is damaged.
        """
        folder = at_home(path)
        run = open_run(folder)
        if run.family not in FAMILIES:
            raise InputError(
                f"{folder} holds a model of the family {run.family!r}, which does not read images; train a reader: t2i train "
                "reader"
            )
        try:
            with torch.random.fork_rng(devices=[]):  # initialising weights must not use the caller's generator
                reader = _open_align(run) if run.family == "align" else _open_reader(run)
        except InputError:
            raise
        except (ValidationError, KeyError, TypeError, ValueError, OSError, AttributeError) as error:
            raise InputError(
                f"the reader at {folder} is damaged ({reason_of(error)[:120]}); train it again: t2i train {run.family}"
            ) from error
        reader.network.eval().requires_grad_(False)
        reader.network.to(device)
        return reader

    @property
    def writes(self) -> bool:
        return self.network.captions is not None

    @property
    def answers(self) -> tuple[str, ...]:
        """All possible answers; empty if it does not answer questions."""
        return self.vocabulary.answers

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def digest(self) -> str:
        """Returns the SHA-256 of everything that its outputs depend on."""
        text = self._text.digest() if self._text else None
        head = [self.tokenizer.json_text, self.vocabulary.kept(), self.resolution, text]
        total = hashlib.sha256(json.dumps(head).encode())
        for part in (self.network, *getattr(self.network, "_frozen", ())):
            hash_values(total, part.state_dict())
        return total.hexdigest()

    # ---- captions and answers ---------------------------------------------------------------------------------------

    def caption(self, images: Sequence[AnyImage] | ImageArray, beams: int = 1) -> list[str]:
        """Writes a caption for each image.

        Args:
            images: paths, Pillow images or uint8 HWC arrays.
            beams: 1: greedy decoding; more: beam search.

        Raises:
            InputError: the reader does not write captions, or an image cannot be read.
        """
        return [text for text, _ in self.write(images, beams)]

    def write(self, images: Sequence[AnyImage] | ImageArray, beams: int = 1) -> list[tuple[str, float]]:
        """Writes a caption for each image; returns it with its mean log likelihood per token, in nats."""
        return self.write_of(self.cells(images), beams)

    def write_of(self, parts: Iterable[Tensor], beams: int = 1) -> list[tuple[str, float]]:
        """Does the same as `write`, given batches of cells."""
        self._require_captions()
        captions = []
        for cells in parts:
            written = write(self._writer(), cells, beams)
            means = (written.log_likelihood_B / written.length_B.clamp(min=1)).tolist()
            captions += [
                (clean_caption(self.tokenizer.decode(ids[1:])), mean)
                for ids, mean in zip(written.ids_BT.cpu(), means, strict=True)
            ]
        return captions

    def likelihood(self, images: Sequence[AnyImage] | ImageArray, captions: Sequence[str]) -> NDArray[np.float64]:
        """Returns log p(caption | image) [B], in nats, for one caption per image.

        Raises:
            InputError: the reader does not write captions, or an image cannot be read.
        """
        self._require_captions()
        parts = list(self.cells(images))
        return self.likelihood_of(torch.cat(parts) if parts else torch.zeros(0), captions)

    def answer(self, images: Sequence[AnyImage] | ImageArray, questions: Sequence[str]) -> list[str]:
        """Answers one question per image, or a single question about all images.

        Raises:
            InputError: the reader does not answer questions, their number is wrong, one is empty, or an image cannot be read.
        """
        self._require_answers()
        if any(not question.strip() for question in questions):
            raise InputError("a question is empty; ask one in words, such as 'how many objects are there?'")
        if len(questions) not in (1, len(images)):
            raise InputError(
                f"{counted(len(questions), 'question')} for {counted(len(images), 'image')}; ask a single question, "
                "or one per image"
            )
        questions = list(questions) * len(images) if len(questions) == 1 else list(questions)
        parts = list(self.cells(images))
        if not parts:
            return []
        scores = self.answer_scores(torch.cat(parts), torch.arange(len(questions)), questions)
        return [self.answers[k] for k in scores.argmax(axis=1)]

    # ---- parts for scoring ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def cells(self, images: Sequence[AnyImage] | ImageArray) -> Iterator[Tensor]:
        """Yields the cells [B, L, D] of images, batch by batch."""
        for start in range(0, len(images), BATCH):
            chosen = images[start : start + BATCH]
            batch = chosen if isinstance(chosen, np.ndarray) else np.stack([self._fit(one) for one in chosen])
            yield self.network.see(to_model(batch).to(self.device))

    @torch.no_grad()
    def likelihood_of(self, cells_BLD: Tensor, captions: Sequence[str]) -> NDArray[np.float64]:
        """Returns log p(caption | image) [B] from the cells of the images."""
        likelihoods = np.empty(len(captions))
        ids, mask, cut = self.tokenizer(list(captions))
        self._warn_of_cut(cut, len(captions), "captions")
        for start in range(0, len(captions), BATCH):
            rows = slice(start, start + BATCH)
            tokens = Tokens(ids[rows].to(self.device), mask[rows].to(self.device))
            nll = self.network.caption_nll(cells_BLD[rows].to(self.device), tokens)
            likelihoods[rows] = -nll.double().sum(dim=1).cpu().numpy()
        return likelihoods

    @torch.no_grad()
    def answer_scores(self, cells_BLD: Tensor, image_Q: Tensor, questions: Sequence[str]) -> NDArray[np.float32]:
        """Returns the probability of each answer to each question [Q, A].

        Args:
            image_Q: the row of `cells` that each question is about.
        """
        assert isinstance(self.network, ReaderNetwork) and self.network.answers is not None
        if self._text is None:  # a frozen encoder warns by itself
            cut = self.tokenizer([question.lower() for question in questions])[2]
            self._warn_of_cut(cut, len(questions), "questions")
        scores = np.empty((len(questions), len(self.answers)), np.float32)
        for start in range(0, len(questions), 4 * BATCH):
            rows = slice(start, start + 4 * BATCH)
            cells = cells_BLD[image_Q[rows]].to(self.device)
            logits = self.network.answers(cells, self.words(questions[rows]))
            scores[rows] = logits.softmax(dim=-1).cpu().numpy()
        return scores

    def words(self, questions: Sequence[str]) -> Any:
        """Returns questions as inputs of the network: tokens, or features of the frozen encoder."""
        if self._text is not None:
            return TextFeatures(*(part.to(self.device) for part in self._text.encode(questions)))
        ids, mask, _ = self.tokenizer([question.lower() for question in questions])
        longest = int(mask.sum(dim=1).max())
        return Tokens(ids[:, :longest].to(self.device), mask[:, :longest].to(self.device))

    def knows(self, answer: str) -> bool:
        """Returns True if the reader can give this answer."""
        return normal_answer(answer) in self.vocabulary.answers

    def _fit(self, image: AnyImage) -> ImageArray:
        if isinstance(image, str | Path):
            try:
                image = images.decode(at_home(image), self.resolution)
            except images.BrokenImage as error:
                raise InputError(f"{image}: {error}; name an image that can be read") from error
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        fit = "center" if self.data.fit == "random" else self.data.fit
        return images.fit(image.convert("RGB"), self.resolution, fit)

    def _writer(self) -> Any:
        captions: Any = self.network.captions
        kind: Any = CaptionerWriter if isinstance(captions, Captioner) else DecoderWriter
        return kind(captions, self.tokenizer)

    def _warn_of_cut(self, cut: int, count: int, what: str) -> None:
        if cut:
            warnings.warn(
                f"{cut:,} of {count:,} {what} {verb(cut)} longer than the limit of {self.tokenizer.max_tokens} tokens of reader "
                f"{self.name}; the rest was cut off",
                stacklevel=4,
            )

    def _require_captions(self) -> None:
        if not self.writes:
            raise InputError(
                f"reader {self.name} answers questions but does not write captions; ask one with --ask, or train captions with "
                "--set tasks.caption=1"
            )

    def _require_answers(self) -> None:
        if not self.answers:
            raise InputError(
                f"reader {self.name} writes captions but does not answer questions; train one that does: t2i train reader "
                "--config reader-vqa"
            )


def _open_reader(run: TrainedRun) -> Reader:
    config = Config.kept(run.manifest["config"])
    vocabulary = Vocabulary.read(read_utf8(run.folder / TOKENIZER), run.manifest["reader"])
    text = load_encoder(run.folder / "text") if run.manifest.get("text_digest") else None
    encoder = load_image_encoder(run.folder / "image") if run.manifest.get("image_digest") else None
    network = ReaderNetwork(config, vocabulary.sizes(text), encoder)
    checkpoint.load_module(network, run.weights, "reader")
    return Reader(config.data, vocabulary, network, text, str(run.folder))


def _open_align(run: TrainedRun) -> Reader:
    if run.manifest["config"].get("aligner", {}).get("kind", "contrastive") != "contrastive":
        raise InputError(
            f"{run.folder} has maps between frozen encoders and no captioner; train a reader: t2i train reader"
        )
    if "captioner" not in run.state:
        raise InputError(
            f"{run.folder} has no captioner in its checkpoint; train it again, or a reader: t2i train reader"
        )
    config = AlignConfig.kept(run.manifest["config"])
    tokenizer = read_tokenizer(read_utf8(run.folder / TOKENIZER), config.text_tower.max_tokens)
    dual, captioner = DualEncoder(config, len(tokenizer)), Captioner(config, len(tokenizer))
    checkpoint.load_module(dual, run.state["model"], "dual encoder")  # the last weights, as the captioner's are
    checkpoint.load_module(captioner, run.state["captioner"], "captioner")
    return Reader(config.data, Vocabulary(tokenizer), AlignedReader(dual.image, captioner), None, str(run.folder))
