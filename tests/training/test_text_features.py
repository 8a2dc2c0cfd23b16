"""The feature cache is never outdated, survives kills and damage, and encodes each caption once."""

import os
import random
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from builders import tiny_text_models as tiny
from builders.tiny_text_models import CAPTIONS
from t2i.errors import InputError, TruncationWarning
from t2i.text import TextConfig, TextEncoder, fit_encoder
from t2i.text.classical import BagOfWords, Word2Vec
from t2i.training import text_features


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_gpt2(tmp_path_factory.mktemp("gpt2"))


def encode_cached(encoder: TextEncoder, captions: list[str], cache: Path, **options: Any) -> text_features.CachedText:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T2I_CACHE", str(cache))
        return text_features.encode_cached(encoder, captions, **options)


def bow(max_tokens: int | None = None) -> BagOfWords:
    return BagOfWords.fit(TextConfig(encoder="bow", max_tokens=max_tokens), CAPTIONS)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(text_features, "SHARD_CAPTIONS", 7)
    monkeypatch.setattr(text_features, "ENCODE_CAPTIONS", 3)


def shard_files(root: Path) -> list[Path]:
    return sorted(root.rglob("*.safetensors"))


def assert_same(
    cached: text_features.CachedText, encoder: TextEncoder, captions: list[str], atol: float = 1e-5
) -> None:
    fresh, stored = encoder.encode(captions), cached.rows(range(len(captions)))
    assert torch.equal(fresh.mask_BT, stored.mask_BT)
    torch.testing.assert_close(stored.tokens_BTD, fresh.tokens_BTD * fresh.mask_BT[:, :, None], atol=atol, rtol=0)
    torch.testing.assert_close(stored.pooled_BP, fresh.pooled_BP, atol=atol, rtol=0)


def test_each_unique_caption_is_encoded_once(tmp_path, small_shards, gpt2_folder):
    encoder = fit_encoder(TextConfig(encoder="gpt2", path=str(gpt2_folder), max_tokens=30), [])
    captions = CAPTIONS[:20] + ["", "zz"] + CAPTIONS[5:12]
    seen: list[str] = []
    encode, encoder.encode = encoder.encode, lambda texts: (seen.extend(texts), encode(texts))[1]
    first = encode_cached(encoder, captions, tmp_path)
    assert (first.hits, first.misses, len(first)) == (0, 22, 29)
    assert sorted(seen) == sorted(set(captions))
    assert len(shard_files(tmp_path)) == 4  # 7 + 7 + 7 + 1
    again = encode_cached(encoder, captions, tmp_path)
    assert (again.hits, again.misses) == (22, 0) and len(seen) == 22
    for result in (first, again):
        assert_same(result, encoder, captions)


def test_rows_in_any_order_with_repeats(tmp_path, small_shards):
    encoder = Word2Vec.fit(TextConfig(encoder="word2vec"), CAPTIONS)
    cached = encode_cached(encoder, CAPTIONS, tmp_path)
    order = [40, 3, 3, 63, 0, 3]
    expected = encoder.encode([CAPTIONS[i] for i in order])
    for indices in (order, torch.tensor(order), torch.tensor(order).numpy()):
        for one, other in zip(cached.rows(indices), expected, strict=True):
            assert torch.equal(one, other)
    assert torch.equal(cached.pooled_BP, encoder.encode(CAPTIONS).pooled_BP)
    light = cached.rows(order, tokens=False)
    assert light.tokens_BTD.shape == (6, 0, 128) and light.mask_BT.shape == (6, 0)
    assert torch.equal(light.pooled_BP, expected.pooled_BP)
    assert all(len(part) == 0 for part in cached.rows([]))
    with pytest.raises(IndexError):
        cached.rows([len(CAPTIONS)])


def test_new_captions_join_the_old_ones(tmp_path, small_shards):
    encoder = bow()
    encode_cached(encoder, CAPTIONS[:30], tmp_path)
    mixed = ["a new star", *CAPTIONS[20:40]]
    cached = encode_cached(encoder, mixed, tmp_path)
    assert (cached.hits, cached.misses) == (10, 11)
    assert_same(cached, encoder, mixed)
    assert encode_cached(encoder, CAPTIONS[:40] + ["a new star"], tmp_path).misses == 0


def test_nothing_to_encode(tmp_path):
    cached = encode_cached(bow(), [], tmp_path)
    assert (len(cached), cached.hits, cached.misses) == (0, 0, 0)
    assert cached.pooled_BP.shape == (0, 17) and not any(tmp_path.iterdir())


@pytest.mark.filterwarnings("error")  # a shard under the same key would be taken for a damaged one, with a warning
def test_two_hundred_mutations_miss_and_two_hundred_repeats_hit(tmp_path, gpt2_folder):
    rng = random.Random(0)
    encoder = fit_encoder(TextConfig(encoder="gpt2", path=str(gpt2_folder), max_tokens=24), [])
    parameters = list(encoder.tower.parameters())
    kinds = ["caption", "weights", "max_tokens", "tokens"]
    for trial in range(200):
        kind, root = kinds[trial % 4], tmp_path / str(trial)
        captions, options = ["a red star", "a blue star", ""], {"tokens": trial % 3 > 0}
        encode_cached(encoder, captions, root, **options)
        if kind == "caption":
            place = rng.randrange(len(captions[1]))
            captions[1] = captions[1][:place] + rng.choice("XYZ ?\u00e9") * 2 + captions[1][place + 1 :]
        elif kind == "weights":
            flat = rng.choice(parameters).view(-1)
            flat[rng.randrange(len(flat))] += 0.25
        elif kind == "max_tokens":
            encoder.max_tokens = rng.choice([length for length in range(20, 40) if length != encoder.max_tokens])
        else:
            options["tokens"] = not options["tokens"]
        changed = encode_cached(encoder, captions, root, **options)
        assert changed.misses == (1 if kind == "caption" else 3), (trial, kind)
        fresh, stored = encoder.encode(captions), changed.rows([0, 1, 2])
        torch.testing.assert_close(stored.pooled_BP, fresh.pooled_BP, atol=1e-5, rtol=0)
        if options["tokens"]:
            torch.testing.assert_close(stored.tokens_BTD, fresh.tokens_BTD, atol=1e-5, rtol=0)
        repeat = encode_cached(encoder, captions, root, **options)
        assert (repeat.hits, repeat.misses) == (3, 0), (trial, kind)


def test_vocabulary_of_a_classical_encoder_is_in_the_key(tmp_path):
    encode_cached(bow(), CAPTIONS, tmp_path)
    other = BagOfWords.fit(TextConfig(encoder="bow"), [*CAPTIONS, "a purple heart"])
    cached = encode_cached(other, CAPTIONS, tmp_path)
    assert cached.misses == len(CAPTIONS)
    assert_same(cached, other, CAPTIONS)


def test_without_tokens_nothing_of_them_is_stored(tmp_path):
    encoder = Word2Vec.fit(TextConfig(encoder="word2vec"), CAPTIONS)
    light = encode_cached(encoder, CAPTIONS, tmp_path / "light", tokens=False)
    encode_cached(encoder, CAPTIONS, tmp_path / "full")
    assert torch.equal(light.pooled_BP, encoder.encode(CAPTIONS).pooled_BP)
    features = light.rows([1, 2])
    assert features.tokens_BTD.shape == (2, 0, 128) and features.mask_BT.shape == (2, 0)
    sizes = [sum(file.stat().st_size for file in shard_files(tmp_path / name)) for name in ("light", "full")]
    assert sizes[0] * 4 < sizes[1]


def test_padding_is_not_stored(tmp_path):
    sizes = []
    for length in (16, 77):
        encode_cached(bow(length), CAPTIONS, tmp_path / str(length))
        sizes.append(shard_files(tmp_path / str(length))[0].stat().st_size)
    assert sizes[1] < 1.2 * sizes[0] + 77 * len(CAPTIONS)


# ---- damage and kills


def damage(path: Path, how: str, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")  # past the header, whose flips may leave valid JSON
    if how == "flip":
        place = rng.randrange(len(data) * 8)
        data[place // 8] ^= 1 << (place % 8)
    elif how == "flip data":
        data[rng.randrange(start, len(data))] ^= 1 << rng.randrange(8)
    elif how == "zero":
        place = rng.randrange(start, len(data) - 100)
        data[place : place + 100] = bytes(b ^ 255 if b == 0 else 0 for b in data[place : place + 100])
    elif how == "cut":
        del data[rng.randrange(len(data)) :]
    elif how == "garbage":
        data = bytearray(rng.randbytes(500))
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("how", ["flip", "flip data", "zero", "cut", "garbage"])
def test_a_damaged_shard_is_encoded_again(how, tmp_path, small_shards):
    encoder, rng = bow(), random.Random(1)
    captions = CAPTIONS[:12]
    encode_cached(encoder, captions, tmp_path)
    noticed = 0
    for _ in range(20):
        damage(rng.choice(shard_files(tmp_path)), how, rng)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            cached = encode_cached(encoder, captions, tmp_path)
        noticed += cached.misses > 0
        assert len(caught) == (cached.misses > 0)
        assert_same(cached, encoder, captions)
        assert encode_cached(encoder, captions, tmp_path).misses == 0
    assert noticed == 20


def test_a_shard_under_a_wrong_name_is_refused(tmp_path, small_shards):
    encoder = bow()
    encode_cached(encoder, CAPTIONS[:14], tmp_path)
    one, other = shard_files(tmp_path)
    one.write_bytes(other.read_bytes())
    with pytest.warns(UserWarning, match="not those of its name"):
        cached = encode_cached(encoder, CAPTIONS[:14], tmp_path)
    assert cached.misses == 7
    assert_same(cached, encoder, CAPTIONS[:14])


def test_a_shard_of_another_encoder_is_refused(tmp_path):
    first, second = bow(), bow(40)
    encode_cached(first, CAPTIONS, tmp_path / "a")
    encode_cached(second, CAPTIONS, tmp_path / "b")
    shard_files(tmp_path / "b")[0].write_bytes(shard_files(tmp_path / "a")[0].read_bytes())
    with pytest.warns(UserWarning, match="damaged"):
        assert encode_cached(second, CAPTIONS, tmp_path / "b").misses == len(CAPTIONS)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_before_the_rename_leaves_only_a_file_that_is_ignored(tmp_path, monkeypatch):
    encoder = bow()
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(os, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        try:
            encode_cached(encoder, CAPTIONS, tmp_path)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL  # the crash happened
    (leftover,) = tmp_path.rglob("*.tmp")
    assert leftover.stat().st_size > 1000 and not shard_files(tmp_path)
    leftover.write_bytes(leftover.read_bytes()[:500])  # and a partial one
    assert encode_cached(encoder, CAPTIONS, tmp_path).misses == len(CAPTIONS)
    assert leftover.exists()  # it may belong to a live process
    cached = encode_cached(encoder, CAPTIONS, tmp_path)
    assert cached.hits == len(CAPTIONS)
    assert_same(cached, encoder, CAPTIONS)
    os.utime(leftover, (0, 0))
    encode_cached(encoder, ["a new star"], tmp_path)
    assert not leftover.exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def fill_up(path, data):
        with path.open("wb") as file:
            file.write(b"half a file")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fill_up)
        with pytest.raises(InputError, match="No space left on device; free some space or set T2I_CACHE") as caught:
            encode_cached(bow(), CAPTIONS, tmp_path)
    assert "\n" not in str(caught.value)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write the cache"):
        encode_cached(bow(), CAPTIONS, tmp_path / "file")


def test_features_that_are_not_finite_are_refused(tmp_path, gpt2_folder):
    encoder = fit_encoder(TextConfig(encoder="gpt2", path=str(gpt2_folder)), [])
    next(encoder.tower.parameters()).view(-1)[:] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        encode_cached(encoder, CAPTIONS[:3], tmp_path)
    assert not shard_files(tmp_path)
    large = Word2Vec(["star"], torch.full((1, 4), 1e6).numpy(), 16)
    assert encode_cached(large, ["star"], tmp_path).pooled_BP[0, 0] == 1e6


# ---- the rest of the interface


def test_the_environment_names_the_folder(tmp_path):
    encode_cached(bow(), CAPTIONS, tmp_path / "here")
    assert len(shard_files(tmp_path / "here" / "text")) == 1


def test_progress(tmp_path, small_shards):
    calls: list[tuple[int, int]] = []
    encode_cached(bow(), CAPTIONS[:5], tmp_path)
    encode_cached(bow(), CAPTIONS[:15], tmp_path, on_progress=lambda *call: calls.append(call))
    assert calls == [(3, 10), (6, 10), (7, 10), (10, 10)]
    calls.clear()
    encode_cached(bow(), CAPTIONS[:15], tmp_path, on_progress=lambda *call: calls.append(call))
    assert calls == []


def test_one_truncation_warning_for_all_shards(tmp_path, small_shards):
    long = [f"{caption} red blue green" for caption in CAPTIONS[:15]]
    with pytest.warns(TruncationWarning, match="15 captions are longer than the 8 tokens .* bow") as caught:
        encode_cached(bow(8), long + ["a star"], tmp_path)
    assert len(caught) == 1


def test_captions_that_were_cut_are_told_again_from_the_cache(tmp_path, small_shards):
    long = [f"{caption} red blue green" for caption in CAPTIONS[:15]]
    for tokens in (True, False):
        with pytest.warns(TruncationWarning):
            encode_cached(bow(8), [*long, "a star"], tmp_path, tokens=tokens)
        for again, count in (([*long, "a star"], 15), (["a star", *long[3:]], 12), (long[:1], 1)):
            with pytest.warns(TruncationWarning) as caught:
                assert encode_cached(bow(8), again, tmp_path, tokens=tokens).misses == 0
            assert [one.message.count for one in caught] == [count]
    with warnings.catch_warnings(action="error"):
        encode_cached(bow(8), ["a star"], tmp_path)


def test_other_warnings_pass(tmp_path):
    encoder = bow()
    encode = encoder.encode
    encoder.encode = lambda texts: (warnings.warn("something else", RuntimeWarning, stacklevel=1), encode(texts))[1]
    with pytest.warns(RuntimeWarning, match="something else"):
        encode_cached(encoder, CAPTIONS, tmp_path)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_shards_are_memory_mapped(tmp_path):
    encoder = bow()
    encode_cached(encoder, CAPTIONS, tmp_path)
    cached = encode_cached(encoder, CAPTIONS, tmp_path)
    assert str(shard_files(tmp_path)[0]) in Path("/proc/self/maps").read_text()
    assert len(cached) == len(CAPTIONS)
