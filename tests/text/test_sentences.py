"""Folders of sentence-transformers give the vectors of that package; relatives of BERT and T5 are read."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from builders import tiny_text_models as tiny
from t2i.errors import InputError, TruncationWarning
from t2i.text import TextConfig, TextEncoder, fit_encoder, load_encoder


def encoder(folder: Path, name: str = "bert", max_tokens: int | None = None) -> TextEncoder:
    return fit_encoder(TextConfig(encoder=name, path=str(folder), max_tokens=max_tokens), [])  # type: ignore[arg-type]


def raw_states(folder: Path, caption: str, limit: int) -> Tensor:
    """Returns states [T, D] of one caption without padding, by transformers alone."""
    from transformers import AutoModel, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(caption, truncation=True, max_length=limit, return_tensors="pt")
    with torch.no_grad():
        return AutoModel.from_pretrained(folder).eval()(**ids).last_hidden_state[0]


BY_HAND = {
    "cls_token": lambda states: states[0],
    "mean_tokens": lambda states: states.mean(dim=0),
    "max_tokens": lambda states: states.max(dim=0).values,
    "mean_sqrt_len_tokens": lambda states: states.sum(dim=0) / len(states) ** 0.5,
    "weightedmean_tokens": lambda states: (
        (states * torch.arange(1, len(states) + 1)[:, None]).sum(dim=0) / sum(range(1, len(states) + 1))
    ),
    "lasttoken": lambda states: states[-1],
}


@pytest.mark.parametrize("pooling", BY_HAND)
@pytest.mark.parametrize("unit", [True, False])
def test_the_rule_of_the_folder_is_kept_to(pooling: str, unit: bool, tmp_path: Path) -> None:
    folder = tiny.save_sentences(tmp_path / "model", pooling, unit=unit)
    found = encoder(folder)
    features = found.encode(tiny.CAPTIONS[:9])
    assert found.max_tokens == 20 and features.pooled_BP.shape == (9, 32)
    for row, caption in enumerate(tiny.CAPTIONS[:9]):
        expected = BY_HAND[pooling](raw_states(folder, caption, 20))
        expected = torch.nn.functional.normalize(expected, dim=0) if unit else expected
        torch.testing.assert_close(features.pooled_BP[row], expected, atol=2e-5, rtol=0)
    found.save(tmp_path / "saved")
    again = load_encoder(tmp_path / "saved")
    assert again.digest() == found.digest()
    plain = encoder(tiny.save_bert(tmp_path / "plain"), max_tokens=20)
    assert (plain.digest() == found.digest()) == (
        pooling == "mean_tokens" and not unit
    )  # which is BERT's own rule here
    assert torch.equal(again.encode(tiny.CAPTIONS[:9]).pooled_BP, features.pooled_BP)


def test_limit_and_case_of_the_folder(tmp_path: Path) -> None:
    folder = tiny.save_sentences(tmp_path, max_tokens=8, lower_case=True)
    found = encoder(folder)
    assert torch.equal(found.encode(["A RED Star"]).pooled_BP, found.encode(["a red star"]).pooled_BP)
    with pytest.warns(TruncationWarning, match="1 caption is longer than the 8 tokens"):
        pooled = found.encode([tiny.CAPTIONS[0]]).pooled_BP[0]
    expected = torch.nn.functional.normalize(raw_states(folder, tiny.CAPTIONS[0], 8).mean(dim=0), dim=0)
    torch.testing.assert_close(pooled, expected, atol=2e-5, rtol=0)
    assert encoder(folder, max_tokens=5).max_tokens == 5
    with pytest.raises(InputError, match="text.max_tokens=9 does not fit .* which reads 3 to 8 tokens"):
        encoder(folder, max_tokens=9)


def test_other_layouts_of_the_same_rules(tmp_path: Path) -> None:
    """An older one with the tower in a subfolder, a newer one with one word, one without a list of modules."""
    folder = tiny.save_sentences(tmp_path / "model", "cls_token")
    expected = encoder(folder).encode(tiny.CAPTIONS[:3]).pooled_BP
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"embedding_dimension": 32, "pooling_mode": "cls"}))
    assert torch.equal(encoder(folder).encode(tiny.CAPTIONS[:3]).pooled_BP, expected)
    (folder / "2_Normalize").mkdir()
    modules = (folder / "modules.json").read_text()
    (folder / "modules.json").unlink()
    assert torch.equal(encoder(folder).encode(tiny.CAPTIONS[:3]).pooled_BP, expected)
    (folder / "0_Transformer").mkdir()
    for file in [path for path in folder.iterdir() if path.is_file()]:
        file.rename(folder / "0_Transformer" / file.name)
    (folder / "modules.json").write_text(modules.replace('"path": ""', '"path": "0_Transformer"'))
    assert torch.equal(encoder(folder).encode(tiny.CAPTIONS[:3]).pooled_BP, expected)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", "{", "not valid JSON"),
        ("modules.json", "[1]", "does not list modules"),
        ("modules.json", '[{"type": "x.Pooling", "path": "../1_Pooling"}]', "outside the folder"),
        (
            "modules.json",
            '[{"type": "x.Pooling", "path": "1_Pooling"}, {"type": "x.Dense", "path": "2_Dense"}]',
            "Dense",
        ),
        ("1_Pooling/config.json", "{}", "names no supported pooling rule"),
        ("1_Pooling/config.json", '{"pooling_mode": "magic"}', "names no supported pooling rule"),
        ("1_Pooling/config.json", '{"pooling_mode": {"a": 1}}', "names no supported pooling rule"),
        ("1_Pooling/config.json", "[]", "does not hold settings"),
        ("sentence_bert_config.json", '{"max_seq_length": -4}', "max_seq_length=-4"),
        ("sentence_bert_config.json", '{"max_seq_length": "long"}', "max_seq_length='long'"),
        ("sentence_bert_config.json", '{"do_lower_case": "yes"}', "do_lower_case='yes'"),
    ],
)
def test_rules_that_are_none_are_refused(file: str, content: str, message: str, tmp_path: Path) -> None:
    tiny.save_sentences(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        encoder(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "mpnet", "electra"])
def test_relatives_of_bert_are_read(kind: str, tmp_path: Path) -> None:
    folder = tiny.save_kin(tmp_path / kind, kind)
    found = encoder(folder)
    features = found.encode(tiny.CAPTIONS[:6])
    for row, caption in enumerate(tiny.CAPTIONS[:6]):
        states = raw_states(folder, caption, 77)
        torch.testing.assert_close(features.tokens_BTD[row, : len(states)], states, atol=2e-5, rtol=0)
        torch.testing.assert_close(features.pooled_BP[row], states.mean(dim=0), atol=2e-5, rtol=0)
    found.save(tmp_path / "saved")
    assert load_encoder(tmp_path / "saved").digest() == found.digest()
    with pytest.raises(InputError, match=f"holds a '{kind}' model, not t5; set text.encoder=bert"):
        encoder(folder, "t5")


def test_the_limit_of_roberta_counts_its_offset(tmp_path: Path) -> None:
    folder = tiny.save_kin(tmp_path, "roberta")
    long = " ".join(tiny.CAPTIONS[:20])
    with pytest.warns(TruncationWarning):
        assert encoder(folder, max_tokens=129).encode([long]).mask_BT.sum() == 129
    with pytest.raises(InputError, match="reads 3 to 129 tokens"):
        encoder(folder, max_tokens=130)


def test_mt5_is_read(tmp_path: Path) -> None:
    from transformers import MT5Config, MT5EncoderModel

    tiny.save_t5(tmp_path)
    size = json.loads((tmp_path / "config.json").read_text())["vocab_size"]
    config = MT5Config(vocab_size=size, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    MT5EncoderModel(config).save_pretrained(tmp_path)
    model = MT5EncoderModel.from_pretrained(tmp_path).eval()
    found = encoder(tmp_path, "t5")
    ids = found.tokenizer(["a star"], return_tensors="pt")  # type: ignore[attr-defined]
    with torch.no_grad():
        expected = model(**ids).last_hidden_state[0]
    torch.testing.assert_close(found.encode(["a star"]).pooled_BP[0], expected.mean(dim=0), atol=2e-5, rtol=0)


def test_a_model_that_no_encoder_reads_is_told_what_they_read(tmp_path: Path) -> None:
    tiny.save_bert(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(InputError, match="'llama' model, not bert; supported are .*t5: t5, mt5"):
        encoder(tmp_path)


def without_google(name: str) -> object:
    """Finds modules as if `sentencepiece` was installed, but no package of Google."""
    if name.startswith("google."):
        raise ModuleNotFoundError("No module named 'google'")
    return object()


def test_a_vocabulary_of_sentencepiece_asks_for_sentencepiece(tmp_path: Path, monkeypatch) -> None:
    tiny.save_t5(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "spiece.model").write_bytes(b"\n\x0e")
    monkeypatch.setattr("importlib.util.find_spec", without_google)
    with pytest.raises(
        InputError, match="spiece.model, which requires sentencepiece: pip install sentencepiece protobuf"
    ):
        encoder(tmp_path, "t5")


@pytest.mark.parametrize("name", ["clip", "t5", "bert", "gpt2"])
def test_captions_have_the_same_bits_in_any_company(name: str, tmp_path: Path) -> None:
    """Also if no caption of a batch is padded, where attention must not use another kernel."""
    save = {"clip": lambda folder: tiny.save_clip(folder, "projected")}.get(name, getattr(tiny, f"save_{name}"))
    found = encoder(save(tmp_path), name, 24)
    captions = [*tiny.CAPTIONS[:40], "", "a", "a star", *(f"{c} and a star" for c in tiny.CAPTIONS[:40:7])]
    together = found.encode(captions)
    lengths = together.mask_BT.sum(dim=1)
    full = [row for row in range(len(captions)) if lengths[row] % 8 == 0]
    for row in [0, 17, 40, 41, 42, *full[:4]]:
        alone = found.encode([captions[row]])
        assert torch.equal(alone.tokens_BTD[0], together.tokens_BTD[row]) and torch.equal(
            alone.pooled_BP[0], together.pooled_BP[row]
        )


def test_short_captions_are_computed_short(tmp_path: Path, monkeypatch) -> None:
    found = encoder(tiny.save_bert(tmp_path))
    seen: list[tuple[int, ...]] = []
    forward = found._forward  # type: ignore[attr-defined]
    monkeypatch.setattr(found, "_forward", lambda ids, mask: seen.append(tuple(ids.shape)) or forward(ids, mask))
    features = found.encode(["a star"] * 9 + [tiny.CAPTIONS[0]])
    lengths = features.mask_BT.sum(dim=1)
    rounded = [int((length + 7) // 8 * 8) for length in (lengths[0], lengths[0], lengths[9])]
    assert seen == [(8, length) for length in rounded] and rounded[0] < rounded[2] < found.max_tokens
