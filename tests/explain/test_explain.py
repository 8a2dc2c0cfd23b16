"""Maps of words, Shapley values, and edits by words."""

import json
from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image

from builders import tiny_text_models
from builders.tiny_cvae_run import make_cvae_run
from builders.tiny_prior_run import make_prior_run
from builders.tiny_run import make_run
from t2i.cli import app
from t2i.errors import InputError
from t2i.explain import editing
from t2i.explain.attention import AttentionRecorder, attention_maps, tokens_of
from t2i.explain.editing import cells_of, mask_of_edit
from t2i.explain.maps import maps_of
from t2i.explain.shapley import EXACT, shapley
from t2i.explain.words import Word, edited, without, words_of
from t2i.pipeline import TextToImagePipeline
from t2i.sampling.inpainting import painted, touched
from t2i.text import TextConfig, fit_encoder

PROMPT = "a large blue square above a small green star"


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    return make_prior_run(tmp_path_factory.mktemp("runs") / "random", "random")


def test_words_and_what_takes_their_place():
    words = words_of(PROMPT, 2)
    assert [word.text for word in words] == ["large", "blue", "square", "above", "small", "green", "star"]
    assert words[1].others == ("red", "orange") and words[3].others == ("below",)
    assert without(PROMPT, words[1])[0] == "a large red square above a small green star"
    assert words_of("two dogs, asleep")[1].others == ("",)
    assert without("two dogs, asleep", words_of("two dogs, asleep")[1]) == ["two, asleep"]
    with pytest.raises(InputError, match="no word for anything visible"):
        words_of("there is a")


def test_an_edit_replaces_words_that_are_there_once():
    assert edited("a red star by a red ring", "red star -> blue star") == (
        "a red star by a red ring",
        "a blue star by a red ring",
    )
    for edit, told in (("red -> blue", "is 2 times"), ("green -> blue", "is 0 times"), ("red", "changes nothing")):
        with pytest.raises(InputError, match=told):
            edited("a red star by a red ring", edit)


@pytest.mark.parametrize("count", [1, 4])
def test_shapley_values_are_those_of_the_definition(count):
    worth = {
        frozenset(s): w
        for s, w in zip(map(frozenset, _subsets(count)), np.random.default_rng(0).normal(size=2**count), strict=True)
    }
    found = shapley(count, lambda sets: [worth[one] for one in sets])
    expected = np.zeros(count)
    orders = list(permutations(range(count)))
    for order in orders:
        for k, i in enumerate(order):
            expected[i] += (worth[frozenset(order[: k + 1])] - worth[frozenset(order[:k])]) / len(orders)
    np.testing.assert_allclose(found.values, expected, atol=1e-12)
    assert found.values.sum() == pytest.approx(found.whole - found.none)


def _subsets(count):
    return [[i for i in range(count) if code >> i & 1] for code in range(2**count)]


def test_sampled_orders_share_out_the_whole_score():
    weights = np.arange(EXACT + 2.0)
    found = shapley(EXACT + 2, lambda sets: [float(sum(weights[list(one)])) for one in sets])
    np.testing.assert_allclose(found.values, weights, atol=1e-9)  # of a sum, each order gives each its own


def test_likelihood_is_that_of_the_network_and_the_image_that_of_a_call(prior):
    pipe = TextToImagePipeline.from_pretrained(prior)
    maps = maps_of(pipe, PROMPT, words_of(PROMPT), 3)
    assert np.array_equal(maps.image_HWC, pipe(PROMPT, seed=3, output_type="uint8").images[0])
    assert all(found.shape == (4, 4) for found in maps.words)
    raster = TextToImagePipeline.from_pretrained(make_prior_run(prior.parent / "raster", "raster"))
    text = raster.text_encoder.encode([PROMPT])
    codes = np.arange(16) % 32
    found = raster.sampler.log_likelihood(text, codes)
    with torch.no_grad():
        loss = raster.sampler.prior(torch.from_numpy(codes)[None], text)
    assert -found.mean() == pytest.approx(float(loss.nll_B[0]), rel=1e-5)


def test_a_word_that_the_model_does_not_know_changes_no_pixel(tmp_path):
    pipe = TextToImagePipeline.from_pretrained(make_run(tmp_path / "gan"))
    pipe.warn_of_unknown_words = lambda prompts: None  # type: ignore[method-assign]
    words = [word._replace(others=("",)) for word in words_of("a quokka blue star")]
    quokka, blue, _ = maps_of(pipe, "a quokka blue star", words, 0).words
    assert not quokka.any() and blue.any()


def test_cells_of_an_edit_and_the_mask_that_marks_them():
    change = np.zeros((4, 4))
    change[1, 1] = 5.0
    cells = cells_of(change, "a", "b")
    assert cells[:3, :3].all() and cells.sum() == 9
    for size in ((16, 16), (40, 24), (33, 57)):
        mask = painted(cells, size, (16, "center"))
        from t2i.sampling.inpainting import _box

        assert np.array_equal(touched(np.asarray(mask) > 127, _box(*size, 16, "center"), (4, 4)), cells)
    with pytest.raises(InputError, match="no part of this image depends"):
        cells_of(change * 0, "a", "b")


def test_an_edit_redraws_what_the_word_made_and_keeps_the_rest(prior, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(editing, "LEAST", 0.0)  # random weights are moved little by any word
    monkeypatch.setattr(editing, "SHARE", 0.9)
    first, second = tmp_path / "first", tmp_path / "second"
    assert app.main(["sample", str(prior), PROMPT, "--out", str(first)]) == 0
    (image,) = first.glob("0*.png")
    command = ["sample", str(prior), "--init", str(image), "--edit", "blue -> red"]
    assert app.main([*command, "--out", str(second)]) == 0
    manifest = json.loads((second / "manifest.json").read_text())
    assert manifest["pictures"][0]["prompt"] == PROMPT.replace("blue", "red")
    assert manifest["given"]["edit"] == "blue -> red"
    pipe = TextToImagePipeline.from_pretrained(prior)
    after = PROMPT.replace("blue", "red")
    mask = mask_of_edit(pipe, Image.open(image), PROMPT, after)
    assert 0 < np.count_nonzero(mask) < 16
    expected = pipe(after, seed=0, init_image=Image.open(image), mask_image=mask, output_type="uint8").images[0]
    (made,) = second.glob("0*.png")
    assert np.array_equal(np.asarray(Image.open(made)), expected)
    capsys.readouterr()
    assert app.main([*command, "--out", str(tmp_path / "third"), "--mask", str(image)]) == 2
    assert "one of --mask FILE, --keep-rows N and --edit" in capsys.readouterr().err
    Image.open(image).save(tmp_path / "bare.png")
    assert app.main(["sample", str(prior), "--init", str(tmp_path / "bare.png"), "--edit", "blue -> red"]) == 2
    assert "holds no prompt" in capsys.readouterr().err
    gan = make_run(tmp_path / "gan")
    assert app.main(["sample", str(gan), "--init", str(image), "--edit", "blue -> red"]) == 2
    assert "cannot resample parts of an image (--edit)" in capsys.readouterr().err


def test_the_page_shows_each_word_and_escapes_it(prior, tmp_path, capsys):
    page = tmp_path / "page.html"
    prompt = "a <b>blue</b> star"
    assert app.main(["explain", str(prior), prompt, "--out", str(page)]) == 0
    text = page.read_text()
    assert (
        text.count("<article") == len(words_of(prompt))
        and "<b>blue" not in text
        and "http:" not in text
        and "None" not in text
    )
    assert app.main(["explain", str(prior), prompt, "--out", str(page)]) == 2
    assert f"{page} exists" in capsys.readouterr().err


def test_attention_is_that_of_the_network(prior, tmp_path):
    words = words_of(PROMPT)
    for run, side in (
        (prior, 4),
        (make_prior_run(tmp_path / "raster", "raster"), 4),
        (make_cvae_run(tmp_path / "cvae"), 4),
        (make_run(tmp_path / "attending", generator={"cross_attention": True}), 16),
    ):
        pipe = TextToImagePipeline.from_pretrained(run)
        maps = maps_of(pipe, PROMPT, words, 3)
        assert maps.attention is not None and all(one.shape == (side, side) for one in maps.attention)
        every = np.sum(maps.attention, axis=0)
        assert (np.array(maps.attention) > 0).all() and (every < 1 + 1e-6).all()
        one = tokens_of(pipe.text_encoder, PROMPT, words[1])
        assert one == (2, 3)  # of a bag of words, which knows `a` too
        other = maps_of(pipe, PROMPT, [words[1]], 3).attention
        np.testing.assert_array_equal(other, maps.attention[1:2])
        (whole,) = attention_maps(pipe, PROMPT, [Word("all", 0, len(PROMPT), ())], 3, np.arange(16) % 32) or []
        np.testing.assert_allclose(whole, 1, atol=1e-6)  # of what a place attends to the prompt
    assert maps_of(TextToImagePipeline.from_pretrained(make_run(tmp_path / "none")), PROMPT, words, 3).attention is None


def test_recorded_weights_are_those_that_the_kernel_takes():
    q, k = torch.randn(2, 1, 2, 5, 4).unbind(0)
    mask = torch.tensor([True, True, True, False, True])[None, None, None]
    with AttentionRecorder() as heard:
        given = torch.nn.functional.scaled_dot_product_attention(q, k, torch.eye(5).expand(1, 2, 5, 5), attn_mask=mask)
    torch.testing.assert_close(heard.weights[0], given[0].mean(dim=0))


@pytest.mark.parametrize("kind", ["clip", "t5", "bert"])
def test_tokens_of_a_word_are_those_of_its_tower(tmp_path, kind):
    folder = tmp_path / kind
    save = getattr(tiny_text_models, f"save_{kind}")
    save(folder, "projected") if kind == "clip" else save(folder)
    encoder = fit_encoder(TextConfig(encoder=kind, path=str(folder), max_tokens=40), [])
    prompt = "a large blue square above a ring"
    ids = encoder.tokenizer(prompt)["input_ids"]
    for word in words_of(prompt):
        start, end = tokens_of(encoder, prompt, word)
        assert encoder.tokenizer.decode(ids[start:end]).strip() == word.text
