"""Starting from weights: tensors that are loaded, tensors that are not, and determinism."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from builders.tiny_prior_run import make_prior_run
from builders.tiny_reader_run import tiny_config
from builders.tiny_run import make_run
from t2i import checkpoint
from t2i.align.tokenizer import CaptionTokenizer
from t2i.cgan.architectures import build
from t2i.errors import InputError
from t2i.families import Source
from t2i.prior.config import Config
from t2i.prior.transformer import Grid, Prior
from t2i.reader.network import ReaderNetwork, Sizes
from t2i.sampling.source import open_source
from t2i.text import TextConfig, fit_encoder
from t2i.training.initialise import Reads, _Matching, _strings, fit_part, initialise
from t2i.training.optimization import freeze

CAPTIONS = ["a small red circle", "a large blue square above a small green star"]
SMALL = {"width": 32, "depth": 2, "heads": 2, "mlp_width": 48, "dropout": 0.0}


def bow(*captions: str):
    return fit_encoder(TextConfig(encoder="bow"), captions)


def prior(encoder, side: int = 4, **model: int) -> Prior:
    config = Config.model_validate({"order": "random", "model": SMALL | model})
    return Prior(config, Grid(side, side, 1, 32), encoder.token_dim, encoder.pooled_dim, encoder.max_tokens)


def source_of(parts: dict[str, nn.Module], text=None, **manifest) -> Source:
    return Source(Path("x"), "x", manifest, {name: part.state_dict() for name, part in parts.items()}, text)


NOTHING = Reads()


def taken(module: nn.Module, source: Source, reads: Reads = NOTHING):
    return fit_part(module, source.parts["model"], _Matching(source, reads))


def test_the_same_model_is_taken_whole() -> None:
    encoder = bow(*CAPTIONS)
    old, new = prior(encoder), prior(encoder)
    fit = taken(new, source_of({"model": old}, encoder, tokenizer_digest="t"), Reads(bow(*CAPTIONS), "t"))
    assert not fit.fitted and not fit.renewed and not fit.left
    new.load_state_dict(fit.loaded)
    assert all(torch.equal(a, b) for a, b in zip(old.state_dict().values(), new.state_dict().values(), strict=True))


def test_columns_of_words_follow_their_words() -> None:
    before, now = bow(*CAPTIONS), bow("a blue circle", "a violet circle under a red star")
    old, new = prior(before), prior(now)
    fit = taken(new, source_of({"model": old}, before, tokenizer_digest="t"), Reads(now, "t"))
    weight, own = fit.loaded["pooled.0.weight"], new.pooled[0].weight
    for column, word in enumerate(now.vocabulary):
        known = word in before.vocabulary
        expected = old.pooled[0].weight[:, before.vocabulary.index(word)] if known else own[:, column]
        assert torch.equal(weight[:, column], expected), word
    assert set(fit.fitted) >= {"text.0.weight", "pooled.0.weight"}
    assert "5 of 7 words" in fit.fitted["pooled.0.weight"]


def test_answers_and_words_of_a_reader_follow_their_strings() -> None:
    texts = ["how many stars are there?", "what colour is the star?"]
    config = tiny_config()
    there = CaptionTokenizer.fit(texts, config.vocabulary, config.max_tokens)
    here = CaptionTokenizer.fit(["is there a red square?", *texts], config.vocabulary, config.max_tokens)
    old = ReaderNetwork(config, Sizes(len(there), 3))
    new = ReaderNetwork(config, Sizes(len(here), 4))
    source = replace(source_of({"model": old}, reader={"answers": ["1", "blue", "red"]}), vocabulary=there.json_text)
    fit = taken(new, source, Reads(vocabulary=here.json_text, answers=("blue", "green", "red", "yes")))
    rows, own = old.answers.out, new.answers.out  # type: ignore[union-attr]
    expected = torch.stack([rows.bias[1], own.bias[1], rows.bias[2], own.bias[3]])
    assert torch.equal(fit.loaded["answers.out.bias"], expected)
    assert torch.equal(fit.loaded["answers.out.weight"][[0, 2]], rows.weight[[1, 2]])
    assert fit.fitted["answers.out.weight"] == "2 of 4 answers" and "answers.fuse.blocks.0.qkv.weight" in fit.loaded
    star = [_strings(tokenizer.json_text).index("Ġstar") for tokenizer in (here, there)]
    assert torch.equal(fit.loaded["captions.tokens.weight"][star[0]], old.captions.tokens.weight[star[1]])  # type: ignore[union-attr]
    other = taken(new, source, Reads(vocabulary=here.json_text, answers=("green", "no", "two", "yes")))
    assert other.renewed["answers.out.bias"] == "no answers in common"


def test_another_text_encoder_and_another_tokenizer_renew_their_layers() -> None:
    before = bow(*CAPTIONS)
    now = fit_encoder(TextConfig(encoder="word2vec"), CAPTIONS * 3)
    old, new = prior(before), prior(now)
    fit = taken(new, source_of({"model": old}, before, tokenizer_digest="t"), Reads(now, "another"))
    assert {n for n, why in fit.renewed.items() if why == "another text encoder"} == {
        "text.0.weight",
        "pooled.0.weight",
    }
    assert {n for n, why in fit.renewed.items() if why == "another tokenizer"} == {"code", "head.weight"}
    assert "blocks.1.qkv.weight" in fit.loaded


def test_places_are_interpolated_and_places_of_a_text_are_kept() -> None:
    encoder = bow(*CAPTIONS)
    old, new = prior(encoder, side=4), prior(encoder, side=8)
    old.rows.data[:] = torch.arange(4.0)[:, None]  # a line stays a line, flat beyond its ends
    fit = taken(new, source_of({"model": old}, encoder, tokenizer_digest="t"), Reads(encoder, "t"))
    expected = torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0])
    torch.testing.assert_close(fit.loaded["rows"][:, 0], expected)
    longer = fit_encoder(TextConfig(encoder="bow", max_tokens=encoder.max_tokens + 4), CAPTIONS)
    other = prior(longer)
    fit = taken(other, source_of({"model": old}, encoder, tokenizer_digest="t"), Reads(longer, "t"))
    assert torch.equal(fit.loaded["text_position"][: encoder.max_tokens], old.text_position)
    assert torch.equal(fit.loaded["text_position"][encoder.max_tokens :], other.text_position[encoder.max_tokens :])
    assert "text.0.weight" in fit.loaded and "text.0.weight" not in fit.fitted  # the length is no other encoder


def test_rows_of_a_vocabulary_follow_their_tokens() -> None:
    class Table(nn.Module):
        roles = {"tokens.weight": "words"}

        def __init__(self, count: int) -> None:
            super().__init__()
            self.tokens = nn.Embedding(count, 4)

    before, now = (CaptionTokenizer.fit(texts, 400, 16) for texts in (CAPTIONS, ["a red hexagon", "a blue circle"]))
    old, new = Table(len(before)), Table(len(now))
    source = Source(Path("x"), "x", {}, {"model": old.state_dict()}, vocabulary=before.json_text)
    weight = taken(new, source, Reads(vocabulary=now.json_text)).loaded["tokens.weight"]
    (here,), (there,) = (tokenizer(["red"])[0][:, 1] for tokenizer in (now, before))
    assert here != there or len(now) != len(before)
    assert torch.equal(weight[here], old.tokens.weight[there])


def test_a_codebook_that_does_not_fit_is_renewed_with_its_counters() -> None:
    class Book(nn.Module):
        def __init__(self, count: int) -> None:
            super().__init__()
            self.register_buffer("codes", torch.randn(count, 2))
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
            self.out = nn.Linear(2, 2)

    old, new = Book(4), Book(8)
    old.steps += 100
    fit = taken(new, source_of({"model": old}))
    assert set(fit.loaded) == {"out.weight", "out.bias"} and set(fit.renewed) == {"codes", "steps"}


def run_of() -> SimpleNamespace:
    said: list[str] = []
    return SimpleNamespace(extra={}, say=said.append, said=said)


def config_of(**values):
    return Config.model_validate({"init_from": "x", **values})


def test_the_table_says_what_was_loaded_renewed_and_left_and_the_manifest_keeps_it() -> None:
    encoder, run = bow(*CAPTIONS), run_of()
    source = source_of({"model": prior(encoder, depth=3)}, encoder, tokenizer_digest="u", step=7)
    initialise(run, config_of(), source, {"model": prior(encoder)}, Reads(encoder, "t"))  # type: ignore[arg-type]
    (told,) = run.said
    assert re.search(r"model +\d+ +0 +2 +6\n", told), told
    assert "renewed: code, head.weight (another tokenizer)" in told and "left: blocks.2." in told
    assert run.extra["init"]["from"] == "x" and run.extra["init"]["step"] == 7


def test_nothing_that_fits_is_an_error() -> None:
    encoder = bow(*CAPTIONS)
    source = Source(Path("x"), "x", {}, {"model": {"other": torch.zeros(2)}}, encoder)
    with pytest.raises(
        InputError, match=r"init_from x: none of its tensors fit this model \(\d+ tensors: not in the source\)"
    ):
        initialise(run_of(), config_of(), source, {"model": prior(encoder)}, Reads(encoder, "t"))  # type: ignore[arg-type]


def test_freezing_takes_whole_parts_and_names_those_there() -> None:
    model = prior(bow(*CAPTIONS))
    freeze({"model": model}, ["model.text", "model.blocks.0"], set())
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen and all(name.startswith(("text.", "blocks.0.")) for name in frozen)
    assert "text_position" not in frozen
    with pytest.raises(
        InputError, match=r"no part 'model.txt' \(did you mean model.text\?\); there are: model.text_position, "
    ):
        freeze({"model": model}, ["model.txt"], set())
    with pytest.raises(InputError, match="freeze leaves nothing of model to train"):
        freeze({"model": model}, ["model"], set())
    with pytest.raises(InputError, match="freeze model.head: model.head.weight was not loaded from the source"):
        freeze({"model": model}, ["model.head"], {"model.head.weight"})


def test_sources_are_runs_saved_models_and_models_of_the_package(tmp_path: Path) -> None:
    run = make_run(tmp_path / "gan")
    found = open_source(str(run), "cgan")
    state, _ = checkpoint.load(run / "checkpoints" / "step-00000007")
    assert found.parts["generator"].keys() == state["ema"].keys() and found.text is not None
    shipped = open_source("prior", "prior")
    assert set(shipped.parts) == {"model"} and shipped.manifest["tokenizer_digest"]
    assert set(open_source("prior", "vqvae").parts["model"]) and open_source("scorer", "align").vocabulary
    assert open_source("prior", "align").vocabulary
    assert open_source(str(make_prior_run(tmp_path / "prior") / "tokenizer"), "vqvae").parts["model"]
    for family, words in (("prior", "family cgan"), ("cvae", "family cgan"), ("vqvae", "family cgan")):
        with pytest.raises(
            InputError, match=f"init_from .* holds a model of the {words}, but this run trains {family}"
        ):
            open_source(str(run), family)
    with pytest.raises(InputError, match="does not exist"):
        open_source(str(tmp_path / "none"), "cgan")


def test_a_generator_without_its_opponent_renews_the_opponent(tmp_path: Path) -> None:
    source = open_source(str(make_run(tmp_path / "gan")), "cgan")
    from builders.tiny_run import CAPTIONS as TRAINED
    from builders.tiny_run import tiny_config

    encoder, run = bow(*TRAINED), run_of()
    players = dict(
        zip(("generator", "discriminator"), build(tiny_config(), encoder.pooled_dim, encoder.token_dim), strict=True)
    )
    initialise(run, config_of(), source, players, Reads(encoder))  # type: ignore[arg-type]
    generator = players["generator"].state_dict()
    assert all(torch.equal(generator[name], tensor) for name, tensor in source.parts["generator"].items())
    assert re.search(r"discriminator +0 +0 +\d+ +0\n", run.said[0])
