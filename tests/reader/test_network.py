"""The reader's networks: losses against theory, gradients, dependencies of each fusion, learning."""

import math

import pytest
import torch
from pydantic import ValidationError

from builders.tiny_reader_run import tiny_config, tiny_reader
from builders.tiny_text_models import save_gpt2
from t2i.align.tokenizer import CaptionTokenizer
from t2i.data import View, open_dataset
from t2i.data.questions import questions_of
from t2i.images import to_model
from t2i.reader.decoder import CaptionDecoder
from t2i.reader.fusion import FUSIONS
from t2i.reader.gpt2 import open_gpt2
from t2i.reader.network import ReaderNetwork, Sizes, Tokens, place_codes
from t2i.reader.reading import Reader
from t2i.reader.scores import answer_scores, caption_scores
from t2i.reader.step import Losses, QuestionBatch, ReaderMicro
from t2i.reader.vocabulary import Vocabulary


def prepared(**changes) -> tuple[Losses, ReaderMicro, Reader]:
    """Returns a new reader, and a micro-batch of 8 images with all of their questions."""
    config = tiny_config(**changes)
    dataset = open_dataset("shapes-2", "train", View(16, limit=8))
    questions = list(questions_of(dataset))
    captions = [options[0] for options in dataset.captions]
    flat = [(row, question) for row, several in enumerate(questions) for question in several]
    tokenizer = CaptionTokenizer.fit(captions + [q.text for _, q in flat], 600, 48)
    vocabulary = Vocabulary(tokenizer, tuple(sorted({answer for _, q in flat for answer in q.answers})))
    torch.manual_seed(0)
    network = ReaderNetwork(config, vocabulary.sizes(None))
    reader = Reader(config.data, vocabulary, network)
    ids, mask, _ = tokenizer(captions)
    target = torch.zeros(len(flat), len(vocabulary.answers))
    for k, (_, question) in enumerate(flat):
        target[k, vocabulary.answers.index(next(iter(question.answers)))] = 1
    rows = torch.tensor([row for row, _ in flat])
    asked = QuestionBatch(reader.words([question.text for _, question in flat]), rows, target)
    return (
        Losses(network, config.tasks),
        ReaderMicro(to_model(dataset.images(range(8))), Tokens(ids, mask), asked),
        reader,
    )


@pytest.mark.parametrize("kind", list(FUSIONS))
def test_losses_are_their_theory_values_and_gradients_reach_every_parameter(kind: str) -> None:
    losses, micro, reader = prepared(fusion={"kind": kind})
    loss, watched = losses(micro)
    assert watched["caption_nll"].item() == pytest.approx(math.log(len(reader.tokenizer)), rel=0.05)
    assert watched["answer_nll"].item() == pytest.approx(math.log(len(reader.answers)), rel=0.02)
    assert loss.item() == pytest.approx(watched["caption_nll"].item() + watched["answer_nll"].item(), rel=1e-5)
    loss.backward()
    assert not [name for name, p in losses.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


@pytest.mark.parametrize("kind", list(FUSIONS))
def test_a_fusion_keeps_its_contract(kind: str) -> None:
    """Padding changes nothing; the image, its places and the words do."""
    torch.manual_seed(0)
    fusion = FUSIONS[kind](32, 16, 2, 2).eval()
    image, text = torch.randn(3, 16, 32), torch.randn(3, 7, 32)
    mask = torch.arange(7) < torch.tensor([[7], [4], [1]])
    joint = fusion(image, text, mask)
    assert joint.shape == text.shape
    scrambled = torch.where(mask[..., None], text, torch.randn_like(text))
    torch.testing.assert_close(fusion(image, scrambled, mask)[mask], joint[mask])
    for image_2, text_2 in ((image.roll(1, 0), text), (image, text.roll(1, 0))):
        assert (fusion(image_2, text_2, mask)[mask] - joint[mask]).abs().max() > 1e-3
    placed = image + place_codes(4, 4, 32)
    turned = image.flip(1) + place_codes(4, 4, 32)
    assert (fusion(turned, text, mask) - fusion(placed, text, mask))[mask].abs().max() > 1e-3


def test_places_tell_all_cells_apart() -> None:
    codes = place_codes(8, 8, 64)
    apart = torch.cdist(codes, codes) + 9 * torch.eye(64)
    assert codes.shape == (64, 64) and apart.min() > 0.5


def test_it_learns_eight_images_by_heart() -> None:
    losses, micro, reader = prepared(width=64)
    optimizer = torch.optim.AdamW(losses.parameters(), 3e-3)
    for _ in range(110):
        loss, _ = losses(micro)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    reader.network.eval()
    dataset = open_dataset("shapes-2", "train", View(16, limit=8))
    images, questions = dataset.images(range(8)), list(questions_of(dataset))
    captions = [options[0] for options in dataset.captions]
    assert reader.caption(images) == captions == reader.caption(images, beams=3)
    assert caption_scores(reader, images, captions)["caption_nll"] < 0.2
    assert answer_scores(reader, images, questions)["answers"] > 0.97
    # the image decides: others' captions are less likely, and others' images are answered wrongly
    assert (reader.likelihood(images, captions) > reader.likelihood(images, captions[::-1]) + 1).all()
    assert answer_scores(reader, images[::-1], questions)["answers"] < 0.8


def test_next_tokens_with_a_past_are_those_of_the_whole_caption() -> None:
    torch.manual_seed(0)
    decoder = CaptionDecoder(50, 12, 32, 2, 4, memory=16).eval()
    cells, ids = torch.randn(3, 9, 16), torch.randint(0, 50, (3, 7))
    whole, _ = decoder(ids, decoder.start(cells))
    past, parts = decoder.start(cells), []
    for t in range(7):
        logits, past = decoder(ids[:, t : t + 1], past)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    chosen, _ = decoder(ids[[2, 0], 3:4], decoder(ids[:, :3], decoder.start(cells))[1].rows(torch.tensor([2, 0])))
    torch.testing.assert_close(chosen[:, 0], whole[[2, 0], 3])
    assert (decoder(ids, decoder.start(cells.roll(1, 0)))[0] - whole).abs().max() > 1e-4


def test_a_gpt2_folder_starts_the_decoder(tmp_path) -> None:
    """Without the cells, its logits are GPT-2's."""
    from transformers import GPT2LMHeadModel

    gpt2 = open_gpt2(str(save_gpt2(tmp_path / "gpt2")), 20)
    decoder = CaptionDecoder(len(CaptionTokenizer(gpt2.tokenizer, 20)), *gpt2.shape, memory=16).eval()
    gpt2.fill(decoder)
    for block in decoder.blocks:
        torch.nn.init.zeros_(block.cross.out.weight)  # type: ignore[union-attr]
        torch.nn.init.zeros_(block.cross.out.bias)  # type: ignore[union-attr]
    ids, mask, _ = CaptionTokenizer(gpt2.tokenizer, 20, (gpt2.end,) * 3)(["a small red circle above a ring", "a star"])
    theirs = GPT2LMHeadModel.from_pretrained(str(tmp_path / "gpt2")).eval()
    with torch.no_grad():
        ours, _ = decoder(ids, decoder.start(torch.randn(2, 4, 16)))
        expected = theirs(input_ids=ids, attention_mask=mask.long()).logits
    torch.testing.assert_close(ours[mask], expected[mask], rtol=1e-4, atol=1e-4)
    assert ids[0, 0] == gpt2.end and mask.sum(dim=1).tolist()[1] < mask.sum(dim=1).tolist()[0]


def test_a_reader_refuses_replay() -> None:
    with pytest.raises(ValidationError, match="replay.address shapes-1 has no effect on a reader"):
        tiny_config(replay={"address": "shapes-1"})


def test_a_reader_of_one_task_has_the_networks_of_that_task() -> None:
    only = tiny_reader(tasks={"caption": 1, "answer": 0})
    assert only.writes and not only.answers and only.network.answers is None
    other = tiny_reader(tasks={"caption": 0, "answer": 1})
    assert not other.writes and other.answers
    assert Sizes(10).answers == 0
