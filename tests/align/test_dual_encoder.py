"""The dual encoder: loss against algebra, tokenizer, learning."""

import math
import unicodedata
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from t2i.align.config import Config
from t2i.align.dual_encoder import DualEncoder
from t2i.align.frozen import FrozenDualEncoder, load_dual_encoder
from t2i.align.losses import contrastive_loss
from t2i.align.tokenizer import CaptionTokenizer
from t2i.data import View, open_dataset
from t2i.errors import InputError, TruncationWarning
from t2i.extractors.aligned import AlignedExtractor
from t2i.images import to_model
from t2i.text import TextConfig, fit_encoder, load_encoder
from t2i.text.aligned import AlignedEncoder

CAPTIONS = [c[0] for c in open_dataset("shapes-1", "train", View(limit=400)).captions]


def small(**changes) -> Config:
    base = {
        "data": {"resolution": 16},
        "text_tower": {"width": 32, "depth": 1, "heads": 2, "max_tokens": 32},
        "image_tower": {"width": 16, "width_limit": 32},
        "embedding": 32,
    }
    return Config.model_validate(base | changes)


@pytest.fixture
def frozen() -> FrozenDualEncoder:
    torch.manual_seed(0)
    tokenizer = CaptionTokenizer.fit(CAPTIONS, 512, 32)
    weights = DualEncoder(small(), len(tokenizer)).state_dict()
    return FrozenDualEncoder(small(), tokenizer, weights)


def test_loss_is_log_batch_for_equal_embeddings_and_cross_entropy_else() -> None:
    same = torch.zeros(8, 8, dtype=torch.bool)
    ones = F.normalize(torch.ones(8, 4), dim=1)
    assert contrastive_loss(ones, ones, torch.tensor(10.0), same).item() == pytest.approx(math.log(8))
    image, text = F.normalize(torch.randn(8, 4), dim=1), F.normalize(torch.randn(8, 4), dim=1)
    logits = 7.0 * image @ text.T
    expected = (F.cross_entropy(logits, torch.arange(8)) + F.cross_entropy(logits.T, torch.arange(8))) / 2
    assert contrastive_loss(image, text, torch.tensor(7.0), same).item() == pytest.approx(expected.item())


def test_captions_that_say_the_same_are_no_negatives() -> None:
    image, text = F.normalize(torch.randn(3, 4), dim=1), F.normalize(torch.randn(3, 4), dim=1)
    same = torch.eye(3, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    found = contrastive_loss(image, text, torch.tensor(5.0), same)
    logits = 5.0 * image @ text.T
    rows = [
        F.cross_entropy(logits[i, keep][None], torch.tensor([keep.index(i)]))
        for i, keep in enumerate([[0, 2], [1, 2], [0, 1, 2]])
    ]
    columns = [
        F.cross_entropy(logits.T[i, keep][None], torch.tensor([keep.index(i)]))
        for i, keep in enumerate([[0, 2], [1, 2], [0, 1, 2]])
    ]
    assert found.item() == pytest.approx((torch.stack(rows).mean() + torch.stack(columns).mean()).item() / 2)


def test_tokenizer_reads_any_string_and_keeps_the_end() -> None:
    tokenizer = CaptionTokenizer.fit(CAPTIONS, 512, 8)
    ids, mask, cut = tokenizer(["a small red circle", "ünknown 猫 words " * 20, ""])
    assert cut == 1 and ids.shape == (3, 8)
    lengths = mask.sum(dim=1)
    assert all(ids[i, 0] == tokenizer.START and ids[i, lengths[i] - 1] == tokenizer.END for i in range(3))
    again = CaptionTokenizer(tokenizer.json_text, 8)
    torch.testing.assert_close(again(["a small red circle"])[0], tokenizer(["a small red circle"])[0])
    assert CaptionTokenizer.fit(CAPTIONS, 512, 8).json_text == tokenizer.json_text


def test_captions_that_are_cut_are_counted() -> None:
    captions = ["a red circle", "a red circle " * 10, "a blue star " * 10]
    tokenizer = CaptionTokenizer.fit(captions, 300, 8)
    cut = tokenizer(captions)[2]
    with pytest.warns(UserWarning, match=f"{cut} of 3 captions are longer than text_tower.max_tokens=8"):
        tokenizer.warn_of_cut(captions, "text_tower.max_tokens")
    with warnings.catch_warnings(action="error"):
        tokenizer.warn_of_cut([], "max_tokens")
        CaptionTokenizer.fit(captions, 300, 200).warn_of_cut(captions, "max_tokens")


def test_tokens_decode_to_the_caption() -> None:
    tokenizer = CaptionTokenizer.fit(CAPTIONS, 512, 64)
    texts = [CAPTIONS[0], "Ünknown 猫, it's  two", "", "a, b", "\n", "e\u0301", "🍕 pizza", "a\tb", "ß"]
    for text, ids in zip(texts, tokenizer(texts)[0], strict=True):
        assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text).lower(), text
    assert 'decoder":null' in tokenizer.json_text.replace(" ", "")  # which names encoders of earlier runs


def test_a_shorter_limit_is_of_the_encoder_alone(frozen) -> None:
    """The guide uses the same dual encoder with the limit that it was trained with."""
    short = AlignedEncoder(frozen, 8)
    long = "a small red circle left of a large green square"
    assert short.encode(["a red star"]).mask_BT.shape == (1, 8) and frozen.tokenizer.max_tokens == 32
    with pytest.warns(TruncationWarning, match="8 tokens"):
        short.encode([long])
    assert torch.equal(AlignedExtractor(frozen).embed_text([long]), frozen.text([long]))
    assert not torch.equal(frozen.text([long]), frozen.states([long], 8)[2])
    for wrong in (1, 2, 33):
        with pytest.raises(InputError, match=f"text.max_tokens={wrong} does not fit .* 3 to 32 tokens"):
            AlignedEncoder(frozen, wrong)


def test_an_encoder_used_as_guide_keeps_its_digest_and_gives_gradients(frozen) -> None:
    guide = AlignedExtractor(frozen)
    before = frozen.digest()
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    embedded = guide.to(torch.device("cpu")).embed_images(images * 2 - 1)
    (embedded * guide.embed_text(["a red circle", "a blue star"])).sum().backward()
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(2))
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in frozen.model.parameters())
    assert frozen.digest() == before == guide.digest()


def test_saved_and_loaded_encoder_gives_the_same_features(frozen, tmp_path) -> None:
    frozen.save(tmp_path / "dual")
    encoder = fit_encoder(TextConfig(encoder="aligned", path=str(tmp_path / "dual")), CAPTIONS)
    encoder.save(tmp_path / "text")
    again = load_encoder(tmp_path / "text")
    assert again.digest() == encoder.digest()
    a, b = encoder.encode(CAPTIONS[:5]), again.encode(CAPTIONS[:5])
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y)
    alone = encoder.encode(CAPTIONS[3:4])
    torch.testing.assert_close(alone.pooled_BP, a.pooled_BP[3:4], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(alone.tokens_BTD, a.tokens_BTD[3:4], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(a.pooled_BP.norm(dim=1), torch.ones(5))
    with pytest.warns(TruncationWarning, match="1 caption"):
        encoder.encode(["word " * 100])
    with pytest.raises(InputError, match="is not a dual encoder"):
        load_dual_encoder(tmp_path)
    with pytest.raises(InputError, match="does not know 'dachshund'; .*t2i train align"):
        fit_encoder(TextConfig(encoder="aligned"), ["a red dachshund"])
    assert fit_encoder(TextConfig(encoder="aligned"), CAPTIONS).digest() != encoder.digest()


def test_padding_changes_no_real_token(frozen) -> None:
    ids, mask, _ = frozen.tokenizer(CAPTIONS[:4])
    tokens, embedding = frozen.model.text(ids, mask)
    scrambled = torch.where(mask, ids, torch.full_like(ids, 7))
    tokens_2, embedding_2 = frozen.model.text(scrambled, mask)
    torch.testing.assert_close(embedding, embedding_2)
    torch.testing.assert_close(tokens[mask], tokens_2[mask])


def test_pictures_of_another_size_are_read(frozen) -> None:
    data = open_dataset("shapes-1", "val", View(resolution=64, limit=4))
    assert frozen.images(data.images(range(4))).shape == (4, 32)


def test_it_learns_which_caption_goes_with_which_picture() -> None:
    torch.manual_seed(0)
    data = open_dataset("shapes-1", "train", View(resolution=16, limit=64))
    captions = [c[0] for c in data.captions]
    tokenizer = CaptionTokenizer.fit(captions, 512, 32)
    model = DualEncoder(small(), len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    images, (ids, mask, _) = to_model(data.images(range(64))), tokenizer(captions)
    names = np.array(captions)
    same = torch.from_numpy(names[:, None] == names)
    for _ in range(150):
        loss = contrastive_loss(model.embed_images(images), model.embed_text(ids, mask), model.scale(), same)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle
    with torch.no_grad():
        scores = model.embed_text(ids, mask) @ model.embed_images(images).T
    assert (names[scores.argmax(dim=1)] == names).mean() > 0.9
