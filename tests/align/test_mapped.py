"""Runs of aligners of frozen features, in each place where a dual encoder is used."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from t2i.align.config import Config
from t2i.align.frozen import load_dual_encoder
from t2i.align.mapped import MappedDualEncoder
from t2i.cli import app
from t2i.config.load import load
from t2i.data import View, open_dataset
from t2i.errors import InputError
from t2i.export.text import text_part
from t2i.extractors import load_image_encoder, open_image_encoder, open_image_text
from t2i.reader.reading import Reader
from t2i.sampling.source import open_source
from t2i.sampling.trained_with import trained_with
from t2i.text import TextConfig, fit_encoder, load_encoder
from t2i.train.align import align_frozen
from t2i.trained import open_run

DATA = ["--data", "shapes-2", "--set", "data.limit=300", "--set", "data.resolution=16", "--set", "validation_n=100"]
CAPTIONS = ["a small red circle", "a large blue square above a green star"]


def train(place: Path, *more: str) -> int:
    return app.main(["train", "align", *DATA, "--set", "image.encoder=classical", *more, "--run-dir", str(place)])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("mapped") / "run"
    assert train(place, "--set", "aligner=cca") == 0
    return place


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return open_dataset("shapes-2", "val", View(resolution=16, limit=5)).images(range(5))


def test_a_run_is_one_step_on_all_images_and_reports_recall_both_ways_and_binding(run):
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    scores = {name: value for line in lines for name, value in line.items()}
    assert open_run(run).manifest["images_seen"] == 300
    assert scores["val_text_to_image_recall@10"] > 0.3 and scores["heldout_image_to_text_recall@10"] > 0.2
    assert scores["val_binding"] == 0.0  # a bag of words cannot tell which attribute is whose
    assert (run / "trained_on.safetensors").exists()


def test_the_same_command_finds_it_finished_and_reads_no_image(run, monkeypatch, capsys):
    monkeypatch.setattr("t2i.extractors.classical.ClassicalCells.encode", None)
    assert train(run, "--set", "aligner=cca") == 0
    assert "is finished: 1 step done\n" in capsys.readouterr().err


def test_it_serves_as_scorer_text_encoder_and_image_encoder_and_is_copied_whole(run, images, tmp_path):
    dual, scorer = load_dual_encoder(run), open_image_text(f"align:{run}")
    assert isinstance(dual, MappedDualEncoder)
    vectors, text = scorer.features(images), scorer.text_features(CAPTIONS)
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([vectors, text]), axis=1), 1, atol=1e-5)
    dual.save(tmp_path / "copy")
    copy = open_image_text(f"align:{tmp_path / 'copy'}")
    assert copy.digest() == scorer.digest() and copy.scale == scorer.scale
    np.testing.assert_array_equal(copy.features(images), vectors)

    encoder = fit_encoder(TextConfig(encoder="aligned", path=str(run)), [])
    encoder.save(tmp_path / "text")
    read = load_encoder(tmp_path / "text")
    assert read.digest() == encoder.digest()
    features = read.encode(CAPTIONS)
    np.testing.assert_allclose(features.pooled_BP.numpy(), text, atol=1e-6)
    assert features.tokens_BTD.shape == (2, read.max_tokens, read.token_dim) and not features.tokens_BTD[0, 4:].any()

    tower = open_image_encoder("aligned", str(run))
    np.testing.assert_allclose(tower.encode(images).pooled_BP.numpy(), vectors, atol=1e-6)
    tower.save(tmp_path / "image")
    assert load_image_encoder(tmp_path / "image").digest() == tower.digest()


def test_as_a_guide_it_passes_gradients_to_images(run):
    guide = open_image_text(f"align:{run}")
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    (guide.embed_images(images) * guide.embed_text(CAPTIONS)).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


def test_an_aligned_run_may_be_aligned_again_and_names_what_it_is_built_on(run, tmp_path):
    place = tmp_path / "again"
    sets = ["--set", "aligner=ridge", "--set", "text.encoder=aligned", "--set", f"text.path={run}"]
    assert train(place, *sets) == 0
    dual = load_dual_encoder(place)
    assert dual.built_on() == [load_dual_encoder(run).digest()]
    encoder = fit_encoder(TextConfig(encoder="aligned", path=str(place)), [])
    assert encoder.digest() == f"{dual.digest()}-{dual.max_tokens}"
    roles = trained_with(encoder, {"guide_built_on": ["abc"]}, None)  # none of these may judge
    assert (
        roles[load_dual_encoder(run).digest()] == "text encoder's image side" and roles["abc"] == "guide's image side"
    )


def test_it_is_no_start_of_towers_and_no_reader(run):
    with pytest.raises(InputError, match="maps between frozen encoders .aligner=cca. and no towers to start from"):
        open_source(str(run), "align")
    with pytest.raises(InputError, match="maps between frozen encoders and no captioner; train a reader"):
        Reader.from_pretrained(run)


def test_its_text_side_is_exported_as_its_encoder_with_the_maps(run):
    encoder = fit_encoder(TextConfig(encoder="aligned", path=str(run)), [])
    part = text_part(encoder, CAPTIONS)
    tokens, pooled = part.graph.module(*part.tokenize(CAPTIONS))
    expected = encoder.encode(CAPTIONS)
    torch.testing.assert_close(pooled, expected.pooled_BP)
    torch.testing.assert_close(tokens, expected.tokens_BTD)


def test_a_game_is_trained_in_steps_and_goes_on_bit_for_bit(tmp_path):
    game = ["--set", "aligner=adversarial", "--set", "aligner.refinements=2", "--set", "train_batch_size=32"]
    assert train(tmp_path / "whole", *game, "--set", "max_train_steps=8") == 0
    assert train(tmp_path / "cut", *game, "--set", "max_train_steps=4") == 0
    assert train(tmp_path / "cut", *game, "--set", "max_train_steps=8") == 0
    whole, cut = (open_run(tmp_path / name) for name in ("whole", "cut"))
    # the learning rate falls over the whole run, so that its state is the same in kind alone
    assert whole.state.keys() == cut.state.keys() == {"model", "game", "turn_optimizer", "discriminator_optimizer"}
    assert cut.manifest["step"] == 8


def test_axes_may_tell_the_classes_of_a_label_apart(tmp_path):
    sets = ["--set", "aligner=subspace", "--set", "aligner.basis=lda", "--set", "aligner.label=background"]
    assert train(tmp_path / "lda", *sets) == 0
    assert load_dual_encoder(tmp_path / "lda").pooled_dim == 2  # of three backgrounds


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["aligner=ccca"], "aligner.kind: must be 'contrastive', 'procrustes', "),
        (
            ["aligner=contrastive", "text.encoder=bow"],
            "no effect with aligner=contrastive, which trains its own towers",
        ),
        (["aligner=cca", "text.encoder=own"], "text.encoder: must be 'aligned', 'bow'"),
        (["aligner=cca", "negatives.kind=hard"], "negatives has no effect with aligner=cca; remove it"),
        (["aligner=cca", "max_train_steps=9"], "max_train_steps=9 has no effect with aligner=cca"),
        (["aligner=procrustes", "aligner.power=1"], "aligner.power: has no effect on procrustes"),
        (["aligner=subspace", "aligner.basis=lda"], "name their label with aligner.label"),
    ],
)
def test_keys_without_effect_are_refused(sets, says):
    with pytest.raises(InputError, match=says):
        load(Config, None, sets)


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["aligner=cca", "data.limit=1"], "an aligner needs at least 2 pairs, got 1"),
        (["aligner=adversarial", "aligner.anchors=299"], "aligner.anchors=299 leaves 1 of 300 images"),
        (
            ["aligner=subspace", "aligner.basis=lda", "aligner.label=breed"],
            "no label 'breed'; it has shape, colour, size",
        ),
        (["aligner=cca", "image.path=somewhere"], "image.path=somewhere has no effect with image.encoder=classical"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, capsys, sets, says):
    more = [word for one in sets for word in ("--set", one)]
    assert train(tmp_path / "run", *more) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("error: ") and says in err


def test_a_game_on_several_processes_is_refused():
    config, run = Config.model_validate({"aligner": {"kind": "adversarial"}}), SimpleNamespace(num_processes=2)
    with pytest.raises(InputError, match=r"trains on one process, and there are 2; start it without torchrun"):
        align_frozen(config, run, train=None, held_out={})  # type: ignore[arg-type]


def test_maps_of_other_encoders_are_damage(run, tmp_path):
    load_dual_encoder(run).save(tmp_path / "copy")
    fit_encoder(TextConfig(encoder="bow"), ["only these words"]).save(tmp_path / "copy" / "text")
    with pytest.raises(InputError, match="is damaged .its maps take "):
        load_dual_encoder(tmp_path / "copy")


def test_a_kind_may_be_written_alone_or_in_full(tmp_path):
    file = tmp_path / "config.yaml"
    for text in ("aligner: cca", "aligner: {kind: cca}"):
        file.write_text(f"family: align\n{text}\n")
        assert load(Config, file, ["aligner.power=1"]).aligner.power == 1  # type: ignore[union-attr]
    assert load(Config, file, ["aligner=ridge"]).aligner.kind == "ridge"
    assert load(Config, file, ["aligner=contrastive"]).text is None
