"""A run directory of `t2i train reader`, made without training."""

from pathlib import Path
from typing import Any

import torch

from t2i import checkpoint
from t2i.align.frozen import TOKENIZER
from t2i.align.tokenizer import CaptionTokenizer
from t2i.config.load import to_yaml
from t2i.data import View, open_dataset
from t2i.data.questions import questions_of
from t2i.reader.config import Config
from t2i.reader.network import ReaderNetwork
from t2i.reader.reading import Reader
from t2i.reader.vocabulary import Vocabulary

SMALL: dict[str, Any] = {
    "data": {"address": "shapes-2", "resolution": 16},
    "image": {"width": 8, "width_limit": 16, "grid": 4},
    "width": 32,
    "decoder": {"depth": 1, "heads": 2},
    "fusion": {"depth": 1, "heads": 2},
    "text": {"depth": 1},
    "vocabulary": 420,
    "device": "cpu",
}


def tiny_config(**changes: Any) -> Config:
    values = {**SMALL, "tasks": {"caption": 1, "answer": 1}}
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return Config.model_validate(values)


def tiny_reader(seed: int = 0, **changes: Any) -> Reader:
    """Returns a reader with random weights that writes more than one caption."""
    config = tiny_config(**changes)
    dataset = open_dataset("shapes-2", "train", View(16, limit=60))
    questions = list(questions_of(dataset))
    words = [options[0] for options in dataset.captions] + [q.text for several in questions for q in several]
    answers = tuple(sorted({answer for several in questions for q in several for answer in q.answers}))
    tokenizer = CaptionTokenizer.fit(words, config.vocabulary, config.max_tokens)
    vocabulary = Vocabulary(tokenizer, answers if config.tasks.answer else ())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ReaderNetwork(config, vocabulary.sizes(None))
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1 and "places" not in name:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    network.eval().requires_grad_(False)
    return Reader(config.data, vocabulary, network)


def make_reader_run(directory: Path, seed: int = 0, **changes: Any) -> Path:
    """Writes a run of `tiny_reader`."""
    config, reader = tiny_config(**changes), tiny_reader(seed, **changes)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text(to_yaml(config))
    (directory / TOKENIZER).write_text(reader.tokenizer.json_text)
    manifest = {
        "family": "reader",
        "images_seen": 100,
        "config": config.model_dump(mode="json"),
        "config_hash": "3" * 64,
        "versions": {"t2i": "0.1.0", "torch": torch.__version__},
        "reader": reader.vocabulary.kept(),
    }
    checkpoint.save(directory / "checkpoints", 7, {"model": reader.network.state_dict()}, manifest)
    return directory
