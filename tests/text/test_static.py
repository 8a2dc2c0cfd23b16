"""The table of token vectors that is distilled from a text tower."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from builders import tiny_text_models as tiny
from builders.commands import error_of
from builders.tiny_text_models import CAPTIONS
from t2i.errors import InputError
from t2i.text import TextConfig, fit_encoder, load_encoder
from t2i.text.static import StaticText, principal

TOWERS = {"bert": tiny.save_bert, "t5": tiny.save_t5, "gpt2": tiny.save_gpt2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("towers")
    return {name: save(root / name) for name, save in TOWERS.items()} | {
        "clip": tiny.save_clip(root / "clip", "projected")
    }


def distilled(folder: Path, width: int | None = None) -> StaticText:
    config = TextConfig(encoder="static", path=str(folder), width=width)
    encoder = fit_encoder(config, CAPTIONS)
    assert isinstance(encoder, StaticText)
    return encoder


def test_principal_components_by_numpy() -> None:
    states = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32) * [5, 4, 3, 2, 1, 0.5]
    states[7] = 0
    known = np.delete(states, 7, axis=0)
    left, scales, _ = np.linalg.svd(known - known.mean(axis=0), full_matrices=False)
    found = principal(states.astype(np.float32), 3)
    assert not found[7].any() and found.shape == (40, 3)
    np.testing.assert_allclose(np.abs(np.delete(found, 7, axis=0)), np.abs(left * scales)[:, :3], atol=1e-4)


@pytest.mark.parametrize("name", [*TOWERS, "clip"])
def test_each_token_is_read_alone_by_any_tower(name: str, folders: dict[str, Path]) -> None:
    """With all components, differences of two rows are those of the tower's vectors up to a rotation."""
    encoder = distilled(folders[name], 24 if name == "clip" else 32)
    tower = fit_encoder(TextConfig(encoder=name, path=str(folders[name])), CAPTIONS)
    words = ["red", "blue", "ring", "star", "q", "x"]
    ids = [encoder.tokenizer.encode(word, add_special_tokens=False).ids for word in words]
    single = [word for word, own in zip(words, ids, strict=True) if len(own) == 1]
    assert len(single) >= 2
    captions_with = [sum(word in caption.split() for caption in CAPTIONS) for word in single]
    rarity = [
        (math.log((1 + len(CAPTIONS)) / (1 + df)) + 1) / (math.log(1 + len(CAPTIONS)) + 1) for df in captions_with
    ]
    rows, mask, _ = encoder.encode(single)
    assert mask.sum(dim=1).tolist() == [1] * len(single)
    table = rows[:, 0] / torch.tensor(rarity)[:, None]
    expected = tower.encode(single).pooled_BP
    found, wanted = torch.cdist(table, table), torch.cdist(expected, expected)
    torch.testing.assert_close(found, wanted, atol=2e-2 * float(wanted.max() + 1e-6), rtol=0)


def test_a_caption_is_the_mean_of_its_tokens_at_unit_length(folders: dict[str, Path]) -> None:
    tokens, mask, pooled = distilled(folders["bert"]).encode([CAPTIONS[0], "", "\u4e2d"])
    mean = tokens[0][mask[0]].mean(dim=0)
    torch.testing.assert_close(pooled[0], mean / mean.norm())
    assert not pooled[1:].any() and mask[1:].sum(dim=1).tolist() == [1, 1], "no known token: a row of zeros, seen"


def test_rare_tokens_weigh_more(folders: dict[str, Path]) -> None:
    captions = ["a red star", *["a ring"] * 20]
    config = TextConfig(encoder="static", path=str(folders["bert"]))
    once, often = StaticText.fit(config, captions), StaticText.fit(config, [*captions, *["a red ring"] * 20])
    ratio = [float(e.encode(["red"]).tokens_BTD[0, 0].norm()) for e in (once, often)]
    assert ratio[0] > 1.5 * ratio[1]


def test_articles_weigh_little_where_no_caption_has_them(folders: dict[str, Path]) -> None:
    config = TextConfig(encoder="static", path=str(folders["bert"]))
    without = StaticText.fit(config, ["red star", "blue ring"] * 20)
    with_it = StaticText.fit(config, ["a red star", "blue ring"] * 20)
    norms = [float(e.encode(["a"]).tokens_BTD[0, 0].norm()) for e in (without, with_it)]
    assert norms[0] == norms[1], "counted as in half of the captions"


def test_width_is_kept_and_a_table_serves_another_run(folders: dict[str, Path], tmp_path: Path) -> None:
    encoder = distilled(folders["bert"], 8)
    assert encoder.token_dim == encoder.pooled_dim == 8
    encoder.save(tmp_path / "text")
    again = StaticText.fit(TextConfig(encoder="static", path=str(tmp_path / "text"), max_tokens=75), ["other words"])
    assert again.max_tokens == 75 and torch.equal(again.encode(CAPTIONS).pooled_BP, encoder.encode(CAPTIONS).pooled_BP)
    with pytest.raises(InputError, match=r"text.width=1024, but the states of .* have only \d+ dimensions; lower it"):
        distilled(folders["bert"], 1024)
    with pytest.raises(InputError, match="text.width=16, but the table .* has 8; remove it"):
        StaticText.fit(TextConfig(encoder="static", path=str(tmp_path / "text"), width=16), CAPTIONS)


def test_mistakes_are_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    def error_with(config: TextConfig) -> str:
        return error_of(lambda: fit_encoder(config, CAPTIONS))

    assert "static needs text.path" in error_with(TextConfig(encoder="static"))
    assert "text.width=64 has no effect with text.encoder=bow" in error_with(TextConfig(encoder="bow", width=64))
    (tmp_path / "empty").mkdir()
    assert "config.json" in error_with(TextConfig(encoder="static", path=str(tmp_path / "empty")))
    distilled(folders["bert"]).save(tmp_path / "text")
    vectors = tmp_path / "text" / "vectors.safetensors"
    rows = load_file(vectors)["vectors"]
    save_file({"vectors": rows[:5]}, vectors)
    with pytest.raises(InputError, match="does not fit tokenizer.json"):
        load_encoder(tmp_path / "text")
    vectors.unlink()
    with pytest.raises(InputError, match="cannot read the text table"):
        load_encoder(tmp_path / "text")
