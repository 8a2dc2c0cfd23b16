"""Text encoders: one contract for all of `ENCODERS`, pooling against hand computation, frozen weights, bad folders."""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from builders import tiny_text_models as tiny
from builders.tiny_text_models import CAPTIONS
from t2i.errors import InputError, TruncationWarning
from t2i.text import ENCODERS, TextConfig, fit_encoder, load_encoder, split_words
from t2i.text.classical import BagOfWords, TfIdf, Word2Vec

PRETRAINED = ["clip", "t5", "bert", "gpt2"]
# `aligned` needs pictures to be trained on: its tests stand with t2i/align
NAMES = [name for name in ENCODERS if name != "aligned"]
UMASK = os.umask(0o022)
os.umask(UMASK)
MIXED = [CAPTIONS[0], "", "a star", "zzz ?", CAPTIONS[40], "a large blue star left of a cyan ring and a red square"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("towers")
    return {
        "clip": tiny.save_clip(root / "clip", "projected"),
        "clip-plain": tiny.save_clip(root / "clip-plain", "plain"),
        "clip-whole": tiny.save_clip(root / "clip-whole", "whole"),
        "t5": tiny.save_t5(root / "t5"),
        "bert": tiny.save_bert(root / "bert"),
        "gpt2": tiny.save_gpt2(root / "gpt2"),
    }


def build(name: str, folders: dict[str, Path], max_tokens: int | None = None):
    path = str(folders["bert" if name == "static" else name]) if name in (*PRETRAINED, "static") else None
    return fit_encoder(TextConfig(encoder=name, path=path, max_tokens=max_tokens), CAPTIONS)


def raises_one_line(config: TextConfig, *parts: str, captions=CAPTIONS) -> None:
    with pytest.raises(InputError) as caught:
        fit_encoder(config, captions)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


# ---- the contract


@pytest.mark.parametrize("name", NAMES)
def test_shapes_types_and_padding(name, folders):
    encoder = build(name, folders)
    tokens, mask, pooled = encoder.encode(MIXED)
    assert encoder.name == name
    assert tokens.shape == (len(MIXED), encoder.max_tokens, encoder.token_dim)
    assert mask.shape == (len(MIXED), encoder.max_tokens)
    assert pooled.shape == (len(MIXED), encoder.pooled_dim)
    assert tokens.dtype == pooled.dtype == torch.float32 and mask.dtype == torch.bool
    assert {tokens.device.type, mask.device.type, pooled.device.type} == {"cpu"}
    assert mask.any(dim=1).all() and not mask.all()
    assert torch.equal(mask.long().sort(dim=1, descending=True).values, mask.long())  # padding on the right
    assert not tokens[~mask].any()
    assert tokens.isfinite().all() and pooled.isfinite().all()
    assert not (tokens.requires_grad or pooled.requires_grad)
    none = encoder.encode([])
    assert [tuple(part.shape)[1:] for part in none] == [tuple(part.shape)[1:] for part in (tokens, mask, pooled)]
    assert all(len(part) == 0 for part in none)


@pytest.mark.parametrize("name", NAMES)
def test_a_caption_does_not_depend_on_its_batch(name, folders):
    encoder = build(name, folders)
    together = encoder.encode(CAPTIONS + MIXED)
    for row in (0, 9, 63, len(CAPTIONS) + 1, len(CAPTIONS) + 5):
        alone = encoder.encode([(CAPTIONS + MIXED)[row]])
        assert torch.equal(alone.mask_BT[0], together.mask_BT[row])
        torch.testing.assert_close(alone.tokens_BTD[0], together.tokens_BTD[row], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.pooled_BP[0], together.pooled_BP[row], atol=1e-5, rtol=0)
    assert (together.pooled_BP[0] - together.pooled_BP[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_more_padding_changes_nothing(name, folders):
    short, long = build(name, folders, 60), build(name, folders, 75)
    a, b = short.encode(MIXED), long.encode(MIXED)
    assert torch.equal(a.mask_BT, b.mask_BT[:, :60]) and not b.mask_BT[:, 60:].any()
    torch.testing.assert_close(a.tokens_BTD, b.tokens_BTD[:, :60], atol=1e-5, rtol=0)
    torch.testing.assert_close(a.pooled_BP, b.pooled_BP, atol=1e-5, rtol=0)
    assert short.digest() != long.digest()


@pytest.mark.parametrize("name", [*NAMES, "clip-plain", "clip-whole"])
def test_saved_encoder_is_the_same(name, folders, tmp_path):
    family = name.partition("-")[0]
    encoder = build(family, {**folders, family: folders.get(name)}, 33)
    encoder.encode(MIXED)  # a call leaves traces in a tokenizer, which the digest must not see
    encoder.save(tmp_path / "text")
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "text").rglob("*.*")} == {0o666 & ~UMASK}
    again = load_encoder(tmp_path / "text")
    assert type(again) is type(encoder) and again.max_tokens == 33
    assert again.digest() == encoder.digest()
    for one, other in zip(encoder.encode(MIXED), again.encode(MIXED), strict=True):
        assert torch.equal(one, other)
    suffixes = {file.suffix for file in (tmp_path / "text").rglob("*") if file.is_file()}
    assert suffixes <= {".json", ".safetensors"}  # nothing to unpickle


@pytest.mark.parametrize("name", NAMES)
def test_one_warning_counts_the_truncated_captions(name, folders):
    encoder = build(name, folders, 12)
    long = "a small red circle above a pink ring " * 3
    with pytest.warns(TruncationWarning, match=f"3 captions are longer than the 12 tokens .* {name}") as caught:
        features = encoder.encode([long, "a star", long, long])
    assert len(caught) == 1
    assert features.mask_BT.sum(dim=1).tolist()[::2] == [12, 12]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode(["a star"])


# ---- pretrained towers


def raw_states(name: str, folder: Path, ids: list[int]) -> torch.Tensor:
    """Returns the last layer's states of one caption without padding, by transformers alone."""
    import transformers

    classes = {"clip": "CLIPTextModelWithProjection", "t5": "T5EncoderModel", "bert": "BertModel", "gpt2": "GPT2Model"}
    model = getattr(transformers, classes[name]).from_pretrained(folder).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).last_hidden_state[0]


@pytest.mark.parametrize("name", PRETRAINED)
def test_states_and_pooling_by_hand(name, folders):
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    features = build(name, folders).encode(CAPTIONS[:3])
    tokenizer = AutoTokenizer.from_pretrained(folders[name])
    for row, caption in enumerate(CAPTIONS[:3]):
        ids = tokenizer(caption)["input_ids"]
        states = raw_states(name, folders[name], ids)
        by_hand = {
            "clip": lambda s, ids=ids: (
                load_file(folders["clip"] / "model.safetensors")["text_projection.weight"]
                @ s[ids.index(tokenizer.eos_token_id)]
            ),
            "t5": lambda s: s.sum(dim=0) / len(s),
            "bert": lambda s: s.sum(dim=0) / len(s),
            "gpt2": lambda s: s[-1],
        }[name](states)
        assert features.mask_BT[row].sum() == len(ids)
        torch.testing.assert_close(features.tokens_BTD[row, : len(ids)], states, atol=2e-5, rtol=0)
        torch.testing.assert_close(features.pooled_BP[row], by_hand, atol=2e-5, rtol=0)


def test_special_tokens_of_each(folders):
    ids = {name: build(name, folders).tokenize(["a star"]) for name in PRETRAINED}

    def real(name: str) -> list[str]:
        tokens, mask, _ = ids[name]
        return build(name, folders).tokenizer.convert_ids_to_tokens(tokens[0][mask[0]].tolist())

    assert real("clip")[0] == "<|startoftext|>" and real("clip")[-1] == "<|endoftext|>"
    assert real("t5")[-1] == "</s>"
    assert real("bert")[0] == "[CLS]" and real("bert")[-1] == "[SEP]"
    assert "<|endoftext|>" not in real("gpt2")


def test_whole_and_plain_clip(folders):
    from transformers import CLIPModel, CLIPTextModel

    whole = build("clip", {"clip": folders["clip-whole"]})
    ids, mask, _ = whole.tokenize(CAPTIONS[:4])
    model = CLIPModel.from_pretrained(folders["clip-whole"]).eval()
    with torch.no_grad():
        expected = model.get_text_features(input_ids=ids, attention_mask=mask.long()).pooler_output
    torch.testing.assert_close(whole.encode(CAPTIONS[:4]).pooled_BP, expected, atol=2e-5, rtol=0)

    plain = build("clip", {"clip": folders["clip-plain"]})
    tower = CLIPTextModel.from_pretrained(folders["clip-plain"]).eval()
    ids, mask, _ = plain.tokenize(CAPTIONS[:4])
    with torch.no_grad():
        states = tower(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    assert plain.pooled_dim == plain.token_dim == 32 and whole.pooled_dim == 24
    end = mask.sum(dim=1) - 1
    torch.testing.assert_close(plain.encode(CAPTIONS[:4]).pooled_BP, states[range(4), end], atol=2e-5, rtol=0)


def test_clip_limit_keeps_the_end_token(folders):
    encoder = build("clip", folders)
    caption = "a small red circle above a pink ring " * 20
    whole = encoder.tokenizer(caption, verbose=False)["input_ids"]
    with pytest.warns(TruncationWarning, match="1 caption is longer than the 77 tokens"):
        features = encoder.encode([caption])
    states = raw_states("clip", folders["clip"], [*whole[:76], encoder.tokenizer.eos_token_id])
    assert len(whole) > 77
    torch.testing.assert_close(features.tokens_BTD[0], states, atol=2e-5, rtol=0)
    with torch.no_grad():
        pooled = encoder.tower.text_projection(states[76])
    torch.testing.assert_close(features.pooled_BP[0], pooled, atol=2e-5, rtol=0)


def test_empty_caption_of_gpt2_is_its_end_of_text(folders):
    features = build("gpt2", folders).encode([""])
    end = build("gpt2", folders).tokenizer.eos_token_id
    states = raw_states("gpt2", folders["gpt2"], [end])
    torch.testing.assert_close(features.pooled_BP[0], states[0], atol=2e-5, rtol=0)


def state_hash(module: nn.Module) -> str:
    sha = hashlib.sha256()
    for key, tensor in [*module.named_parameters(), *module.named_buffers()]:  # also buffers that no checkpoint keeps
        sha.update(key.encode() + tensor.detach().numpy().tobytes())
    return sha.hexdigest()


@pytest.mark.parametrize("name", PRETRAINED)
def test_frozen_through_training(name, folders):
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text = build(name, folders)
            self.out = nn.Linear(self.text.pooled_dim + self.text.token_dim, 1)

        def forward(self, captions):
            features = self.text.encode(captions)
            return self.out(torch.cat([features.pooled_BP, features.tokens_BTD.mean(dim=1)], dim=1))

    head = Head()
    tower = head.text.tower
    before, digest = state_hash(tower), head.text.digest()
    head.text.encode(MIXED)
    assert state_hash(tower) == before
    head.train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.1, weight_decay=0.1)
    weights = head.out.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        head(CAPTIONS[:8]).square().mean().backward()
        optimizer.step()
    assert not torch.equal(head.out.weight, weights)  # the step was taken
    assert state_hash(tower) == before and head.text.digest() == digest
    assert not any(module.training for module in tower.modules())
    assert not any(p.requires_grad or p.grad is not None for p in tower.parameters())


def test_float32_inside_a_bf16_step(folders):
    encoder = build("bert", folders)
    outside = encoder.encode(CAPTIONS[:2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = encoder.encode(CAPTIONS[:2])
    assert torch.equal(outside.tokens_BTD, inside.tokens_BTD) and torch.equal(outside.pooled_BP, inside.pooled_BP)


def test_to_moves_the_tower(folders):
    encoder = build("gpt2", folders)
    assert encoder.to("cpu") is encoder and encoder.device == torch.device("cpu")
    encoder.to("meta")
    assert encoder.device.type == "meta"


def test_half_precision_weights_are_read_as_float32(folders, tmp_path):
    from transformers import BertModel

    BertModel.from_pretrained(folders["bert"]).half().save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders["bert"] / name, tmp_path)
    assert build("bert", {"bert": tmp_path}).encode(["a star"]).pooled_BP.dtype == torch.float32


def test_sharded_weights(folders, tmp_path):
    from transformers import BertModel

    BertModel.from_pretrained(folders["bert"]).save_pretrained(tmp_path, max_shard_size="20KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders["bert"] / name, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert build("bert", {"bert": tmp_path}).digest() == build("bert", folders).digest()


@pytest.mark.parametrize("name", PRETRAINED)
def test_digest_sees_weights_and_config_and_tokenizer(name, folders, tmp_path):
    encoder = build(name, folders)
    digests = {encoder.digest()}
    with torch.no_grad():
        last = list(encoder.tower.parameters())[-1]
        last.view(-1)[0] += 1e-3
        digests.add(encoder.digest())
        last.view(-1)[0] -= 1e-3
    setattr(encoder.tower.config, encoder.decisive[0], 2)
    digests.add(encoder.digest())
    encoder = build(name, folders)
    encoder.tokenizer.add_tokens(["purple"])
    digests.add(encoder.digest())
    assert len(digests) == 4


def test_loading_and_saving_are_silent(folders, tmp_path, capfd):
    build("bert", folders).save(tmp_path)
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


# ---- bad folders


@pytest.mark.parametrize("name", PRETRAINED)
@pytest.mark.parametrize("other", PRETRAINED)
def test_wrong_kind_of_model(name, other, folders):
    if name != other:
        path = str(folders[other])
        raises_one_line(TextConfig(encoder=name, path=path), path, f"not {name}", "set text.encoder")


def test_missing_paths(folders, tmp_path, monkeypatch):
    raises_one_line(TextConfig(encoder="clip"), "needs text.path", "config.json")
    raises_one_line(
        TextConfig(encoder="clip", path="/no/such/folder"), "/no/such/folder", "does not exist", "tokenizer"
    )
    raises_one_line(TextConfig(encoder="clip", path="./no/such"), "./no/such", "does not exist")
    raises_one_line(TextConfig(encoder="t5", path=str(tmp_path)), "no config.json", "model.safetensors")
    file = folders["bert"] / "config.json"
    raises_one_line(TextConfig(encoder="bert", path=str(file)), str(file), "is a file")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    raises_one_line(
        TextConfig(encoder="clip", path="nobody/no-such-model"), "nobody/no-such-model", "hub", "config.json"
    )


def test_pickled_weights_are_refused(folders, tmp_path):
    shutil.copytree(folders["bert"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    raises_one_line(TextConfig(encoder="bert", path=str(tmp_path)), "no model.safetensors")
    torch.save({}, tmp_path / "pytorch_model.bin")
    raises_one_line(TextConfig(encoder="bert", path=str(tmp_path)), "pytorch_model.bin", "save_pretrained")


def test_weights_named_by_the_folder_are_safetensors_too(folders, tmp_path):
    from safetensors.torch import load_file

    shutil.copytree(folders["bert"], tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    torch.save(weights, tmp_path / "adapter_model.bin")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"transformers_weights": "adapter_model.bin"}))
    raises_one_line(TextConfig(encoder="bert", path=str(tmp_path)), "adapter_model.bin", "only .safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "adapter_model.bin")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    raises_one_line(TextConfig(encoder="bert", path=str(tmp_path)), "adapter_model.bin", "only .safetensors")


def test_damaged_and_incomplete_weights(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(folders["gpt2"], tmp_path, dirs_exist_ok=True)
    config = TextConfig(encoder="gpt2", path=str(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("transformer.h.1.mlp.c_fc.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    raises_one_line(config, str(tmp_path), "lacks 1 of the model's tensors", "h.1.mlp.c_fc.weight")
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: len(data) // 2])
    raises_one_line(config, str(tmp_path), "damaged")
    (tmp_path / "config.json").write_text("{")
    raises_one_line(config, str(tmp_path), "config.json is not valid JSON")


@pytest.mark.parametrize("name", PRETRAINED)
def test_missing_tokenizer(name, folders, tmp_path):
    shutil.copytree(folders[name], tmp_path, dirs_exist_ok=True)
    for file in tmp_path.glob("token*"):
        file.unlink()
    raises_one_line(TextConfig(encoder=name, path=str(tmp_path)), str(tmp_path), "tokenizer")


def test_foreign_tokenizer(folders, tmp_path):
    shutil.copytree(folders["clip"], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": 7}))
    raises_one_line(
        TextConfig(encoder="clip", path=str(tmp_path)), "eos_token_id", "replace it by the model's tokenizer"
    )
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": 2}))  # as in the first CLIP configs
    old = build("clip", {"clip": tmp_path}).encode(CAPTIONS)
    torch.testing.assert_close(old.pooled_BP, build("clip", folders).encode(CAPTIONS).pooled_BP, atol=1e-5, rtol=0)

    shutil.copytree(folders["bert"], tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders["gpt2"] / name, tmp_path / "b" / name)
    raises_one_line(
        TextConfig(encoder="bert", path=str(tmp_path / "b")), "embeds only", "replace it by the model's tokenizer"
    )


def test_code_in_a_folder_is_not_run(folders, tmp_path):
    shutil.copytree(folders["bert"], tmp_path, dirs_exist_ok=True)
    mark = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Config: pass\nclass Words: pass\n")
    config = json.loads((tmp_path / "config.json").read_text())
    hostile = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config | hostile))
    raises_one_line(TextConfig(encoder="bert", path=str(tmp_path)), str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config | {"auto_map": hostile["auto_map"]}))
    tokenizer = json.loads((tmp_path / "tokenizer_config.json").read_text())
    hostile = {"tokenizer_class": "Words", "auto_map": {"AutoTokenizer": ["evil.Words", "evil.Words"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer | hostile))
    try:
        build("bert", {"bert": tmp_path})
    except InputError as error:
        assert "\n" not in str(error)
    assert not mark.exists()


@pytest.mark.parametrize(("name", "limit"), [("clip", "to 77"), ("bert", "to 128"), ("gpt2", "to 96")])
def test_max_tokens_out_of_range(name, limit, folders):
    raises_one_line(TextConfig(encoder=name, path=str(folders[name]), max_tokens=200), "text.max_tokens=200", limit)
    if name != "gpt2":  # the two special tokens leave no room for a word
        raises_one_line(TextConfig(encoder=name, path=str(folders[name]), max_tokens=2), "text.max_tokens=2", "3 to")


def test_t5_has_no_limit_of_its_own(folders):
    assert build("t5", folders, 500).encode(["a star"]).mask_BT.shape == (1, 500)
    assert build("t5", folders).max_tokens == 77


def test_saved_folders_that_are_none(folders, tmp_path):
    build("bow", folders).save(tmp_path)
    good = json.loads((tmp_path / "encoder.json").read_text())
    cases = [
        ({**good, "encoder": "os:system"}, "valid names: aligned, bow"),
        ({**good, "encoder": ["bow"]}, "encoder"),
        ({**good, "weights": good["weights"][1:]}, "one weight per word"),
        ({**good, "max_tokens": 0}, "max_tokens"),
        ({**good, "vocabulary": []}, "vocabulary"),
        ({**good, "extra": 1}, "extra"),
        ([], "encoder.json"),
    ]
    for content, part in cases:
        (tmp_path / "encoder.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=part) as caught:
            load_encoder(tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / "encoder.json").write_bytes(b"\xff{")
    with pytest.raises(InputError, match="not a saved text encoder"):
        load_encoder(tmp_path)
    with pytest.raises(InputError, match="no text encoder at"):
        load_encoder(tmp_path / "nothing")
    with pytest.raises(InputError, match="cannot write"):
        build("bow", folders).save(tmp_path / "encoder.json" / "below")


# ---- classical encoders


def test_words():
    assert split_words("A bird's-eye VIEW, été 2 x") == ["a", "bird's", "eye", "view", "été", "2", "x"]


def test_bow_by_hand():
    encoder = BagOfWords.fit(TextConfig(encoder="bow"), ["b a", "c, a"])
    tokens, mask, pooled = encoder.encode(["A b? a unknown", "unknown"])
    assert encoder.vocabulary == ["a", "b", "c"] and encoder.max_tokens == 16
    torch.testing.assert_close(pooled[0], torch.tensor([2.0, 1.0, 0.0]) / 5**0.5)
    assert tokens[0, :3].tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]] and mask[0].sum() == 3
    assert not pooled[1].any() and not tokens[1].any() and mask[1].tolist() == [True] + [False] * 15


def test_tfidf_agrees_with_scikit_learn():
    peer = (
        pytest.importorskip("sklearn.feature_extraction.text")
        .TfidfVectorizer(token_pattern=r"(?u)\b\w+\b")
        .fit(CAPTIONS)
    )
    encoder = TfIdf.fit(TextConfig(encoder="tfidf"), CAPTIONS)
    queries = ["a red red star", *CAPTIONS[:9]]
    np.testing.assert_allclose(encoder.encode(queries).pooled_BP, peer.transform(queries).toarray(), atol=1e-6)
    assert encoder.digest() != BagOfWords.fit(TextConfig(encoder="bow"), CAPTIONS).digest()


@pytest.mark.parametrize("kind", [BagOfWords, TfIdf])
@pytest.mark.parametrize("words", [30, 600])
def test_token_rows_add_up_to_the_pooled_vector(kind, words):
    rng = np.random.default_rng(0)
    captions = [" ".join(f"w{i}" for i in rng.integers(0, words, 12)) for _ in range(400)]
    encoder = kind.fit(TextConfig(encoder=kind.name), captions)
    tokens, mask, pooled = encoder.encode(captions[:50])
    sums = (tokens * mask[:, :, None]).sum(dim=1)
    assert encoder.token_dim == min(len(encoder.vocabulary), 256) and encoder.pooled_dim == len(encoder.vocabulary)
    if words == 30:
        torch.testing.assert_close(sums / sums.norm(dim=1, keepdim=True), pooled)
        return
    # one linear map takes the pooled vectors, scaled back, to the sums; it keeps inner products in expectation
    single, _, axes = encoder.encode(encoder.vocabulary)
    directions = single[:, 0] / single[:, 0].norm(dim=1, keepdim=True)
    weights = torch.tensor(encoder.weights_V, dtype=torch.float32)
    projection = single[:, 0] / weights[:, None]
    scale = torch.tensor([np.linalg.norm(np.bincount(
        [encoder._row_of[w] for w in split_words(c)], minlength=len(encoder.vocabulary)) * encoder.weights_V)
        for c in captions[:50]], dtype=torch.float32)  # fmt: skip
    torch.testing.assert_close((pooled * scale[:, None]) @ projection, sums, atol=1e-4, rtol=1e-4)
    assert torch.equal(axes.argmax(dim=1), torch.arange(len(encoder.vocabulary)))
    assert (directions @ directions.T - torch.eye(len(directions))).abs().mean() < 0.06


def test_vocabulary_is_capped_at_the_most_frequent():
    captions = [f"word{i} common" for i in range(5000)] + ["word7 rare"] * 3
    encoder = BagOfWords.fit(TextConfig(encoder="bow"), captions)
    assert len(encoder.vocabulary) == 4096 and {"common", "word7", "rare"} <= set(encoder.vocabulary)
    assert encoder.digest() == BagOfWords.fit(TextConfig(encoder="bow"), captions).digest()


def test_vocabulary_and_digest_are_those_of_scikit_learn():
    """scikit-learn fitted the encoders of earlier runs; its choice among equally frequent words at the limit is kept too."""
    peers = pytest.importorskip("sklearn.feature_extraction.text")
    rng = np.random.default_rng(3)
    words = [f"W{i}'s" if i % 5 == 0 else f"wé{i}" for i in range(7000)]
    cases = [
        CAPTIONS,
        [" ".join(words[i] for i in rng.integers(0, 7000, 9)) for _ in range(2500)],
        [f"word{i} common" for i in range(5000)] + ["word7 rare"] * 3,
        ["", "?!", "a b a", "Ünï 猫 猫", "it's it\u2019s"],
    ]
    for captions in cases:
        for kind, peer in ((BagOfWords, peers.CountVectorizer), (TfIdf, peers.TfidfVectorizer)):
            ours = kind.fit(TextConfig(encoder=kind.name), captions)
            fitted = peer(analyzer=split_words, max_features=4096).fit(captions)
            weights = getattr(fitted, "idf_", np.ones(len(fitted.vocabulary_))).tolist()
            theirs = kind(fitted.get_feature_names_out().tolist(), weights, ours.max_tokens)
            assert ours.vocabulary == theirs.vocabulary and ours.digest() == theirs.digest()


def test_idf_by_hand():
    encoder = TfIdf.fit(TextConfig(encoder="tfidf"), ["a b", "a a c", "a"])
    assert encoder.vocabulary == ["a", "b", "c"]
    assert encoder.weights_V.tolist() == pytest.approx([1, math.log(4 / 2) + 1, math.log(4 / 2) + 1])


def test_length_follows_the_training_captions():
    assert BagOfWords.fit(TextConfig(encoder="bow"), ["a " * 30]).max_tokens == 30
    assert BagOfWords.fit(TextConfig(encoder="bow"), ["a " * 300]).max_tokens == 77


def test_word2vec_pools_the_mean_and_skips_unknown_words():
    encoder = Word2Vec.fit(TextConfig(encoder="word2vec"), CAPTIONS)
    tokens, mask, pooled = encoder.encode(["a zzz red star", "zzz"])
    rows = torch.stack([encoder.encode([word]).pooled_BP[0] for word in ("a", "red", "star")])
    assert encoder.token_dim == encoder.pooled_dim == 128 and mask.sum(dim=1).tolist() == [3, 1]
    torch.testing.assert_close(tokens[0, :3], rows)
    torch.testing.assert_close(pooled[0], rows.mean(dim=0))
    assert not pooled[1].any() and not tokens[1].any()


def test_word2vec_learns_which_words_stand_alike():
    encoder = Word2Vec.fit(TextConfig(encoder="word2vec"), CAPTIONS)
    vectors = torch.nn.functional.normalize(encoder.encode([*tiny.COLOURS, *tiny.SHAPES]).pooled_BP)
    cosine = vectors @ vectors.T
    within = torch.cat(
        [cosine[:4, :4][~torch.eye(4, dtype=torch.bool)], cosine[4:, 4:][~torch.eye(4, dtype=torch.bool)]]
    )
    assert within.mean() > cosine[:4, 4:].mean() + 0.05


@pytest.mark.parametrize("captions", [["red"], ["red", "blue"], ["red red"], ["", "a"]])
def test_word2vec_of_hardly_any_words(captions):
    assert Word2Vec.fit(TextConfig(encoder="word2vec"), captions).encode(captions).pooled_BP.isfinite().all()


def test_word2vec_puts_words_of_the_same_company_together():
    """Skip-gram factorises shifted pointwise mutual information (Levy & Goldberg, 2014): similar words have similar rows."""
    from t2i.text.skip_gram import word_vectors

    rng = np.random.default_rng(0)
    captions = [rng.choice([0, 1, 2], 1).tolist() + rng.choice([3, 4], 1).tolist() for _ in range(3000)]
    captions += [rng.choice([5, 6], 1).tolist() + rng.choice([7, 8], 1).tolist() for _ in range(3000)]
    counts = np.bincount(np.concatenate(captions))
    vectors = word_vectors([np.array(caption) for caption in captions], counts, 16)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine, groups = unit @ unit.T, [[0, 1, 2], [3, 4], [5, 6], [7, 8]]
    within = min(cosine[i, j] for group in groups for i in group for j in group)
    across = max(cosine[i, j] for a in groups for b in groups if a is not b for i in a for j in b)
    assert within > 0.9 > 0.6 > across


def test_word2vec_leaves_threads_and_generator_alone():
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = Word2Vec.fit(TextConfig(encoder="word2vec"), CAPTIONS).digest()
    assert torch.get_num_threads() == threads and torch.equal(torch.rand(3), expected)
    torch.set_num_threads(3)
    try:
        assert Word2Vec.fit(TextConfig(encoder="word2vec"), CAPTIONS).digest() == one
    finally:
        torch.set_num_threads(threads)


def test_word2vec_is_the_same_in_every_process():
    code = (
        "import json, sys; from t2i.text import TextConfig, fit_encoder;"
        "print(fit_encoder(TextConfig(encoder='word2vec'), json.load(sys.stdin)).digest())"
    )
    captions = CAPTIONS * 60
    digests = {Word2Vec.fit(TextConfig(encoder="word2vec"), captions).digest()}
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", code]
        digests.add(subprocess.check_output(command, env=environment, text=True, input=json.dumps(captions)).strip())
    assert len(digests) == 1


@pytest.mark.parametrize("name", ["bow", "tfidf", "word2vec"])
def test_classical_input_errors(name, tmp_path):
    raises_one_line(TextConfig(encoder=name), "no word", captions=["?!", ""])
    raises_one_line(TextConfig(encoder=name), "no word in 0", captions=[])
    raises_one_line(TextConfig(encoder=name, path="somewhere"), "text.path='somewhere'", "remove")


def test_damaged_word_vectors(tmp_path):
    from safetensors.numpy import save_file

    Word2Vec.fit(TextConfig(encoder="word2vec"), CAPTIONS).save(tmp_path)
    path = tmp_path / "vectors.safetensors"
    for damage in (
        lambda: path.write_bytes(path.read_bytes()[:-5]),
        lambda: save_file({"vectors": np.zeros((2, 3), np.float32)}, path),
        lambda: save_file({"other": np.zeros((2, 3), np.float32)}, path),
        path.unlink,
    ):
        damage()
        with pytest.raises(InputError, match="vectors.safetensors") as caught:
            load_encoder(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["bow", "tfidf", "word2vec"])
def test_stop_words_are_left_out_and_those_that_tell_are_named(name, tmp_path):
    captions = ["a red circle above the blue square", "two stars are on top of a ring"] * 8
    config = TextConfig(encoder=name, stop_words="english")
    with pytest.warns(
        UserWarning, match=r"leaves out words that describe images: above \(8\), two \(8\), on \(8\), top"
    ):
        encoder = fit_encoder(config, captions)
    assert sorted(encoder.vocabulary) == ["blue", "circle", "red", "ring", "square", "stars"]
    plain = fit_encoder(TextConfig(encoder=name), captions)
    assert plain.digest() != encoder.digest() and "above" in plain.vocabulary
    encoder.save(tmp_path / "saved")
    again = load_encoder(tmp_path / "saved")
    assert again.digest() == encoder.digest()
    assert again.unknown_words(["a red hexagon above the ring"]) == ["hexagon"]
    with pytest.raises(InputError, match="found no word"), pytest.warns(UserWarning):
        fit_encoder(config, ["above the", "on top of two"])


def test_stop_words_of_an_encoder_that_reads_sentences_are_refused():
    with pytest.raises(
        InputError, match="text.stop_words=english has no effect with text.encoder=bert, which reads whole"
    ):
        fit_encoder(TextConfig(encoder="bert", stop_words="english"), ["a"])
