"""Metrics of captions and of reconstructions, by hand and through their programs."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from builders.tiny_tokenizer import make_run
from t2i.cli import app
from t2i.data import View, open_dataset
from t2i.families.tokenizers import load_tokenizer
from t2i.metrics.captions import bleu, cider_d, tokens
from t2i.metrics.reconstruction import perceptual, psnr, ssim
from t2i.metrics.score import read_scores

# ---------------------------------------------------------------- captions


def test_tokens_of_plain_captions() -> None:
    assert " ".join(tokens("The dog\u2019s T-shirt isn't RED, (3.5 m).")) == "the dog 's t-shirt is n't red 3.5 m"
    assert tokens(" ,. ") == []


def test_bleu_by_hand() -> None:
    # 4, 3, 2 and 1 n-grams, all found but for the last word; as long as the nearer reference
    value = bleu(["a red circle here"], [["a red circle there", "a disc that is red and quite round"]])
    assert value == 0  # no 4-gram: without smoothing nothing
    candidate, reference = "a red circle above a square", "a red circle above a blue square"
    precisions = (6 / 6) * (4 / 5) * (3 / 4) * (2 / 3)
    assert bleu([candidate], [[reference]]) == pytest.approx(math.exp(1 - 7 / 6) * precisions**0.25, rel=1e-5)
    assert bleu([candidate], [[candidate.upper() + "."]]) == 1
    # Of two references equally near in length the shorter decides on brevity, in whatever order they come.
    four, six = "a red circle above", "a red circle above a square"
    assert bleu(["a red circle above a"], [[six, four]]) == bleu(["a red circle above a"], [[four, six]]) == 1


def test_cider_d_by_hand() -> None:
    """Two images: an n-gram in the references of one has the weight log 2, one in those of both has none."""
    exact = cider_d(["red cat", "red dog"], [["red cat"], ["red dog"]])
    # 1-grams `cat` and `dog`, 2-grams `red cat` and `red dog`; no 3- and 4-grams: half of the four cosines are 1.
    assert exact.value == pytest.approx(10 * 2 / 4)
    longer = cider_d(["cat cat cat", "red dog"], [["red cat"], ["red dog"]])
    # Only one `cat` counts: 1 / (3 * 1), less for one word more; the 2-gram `cat cat` is in no reference.
    first = 10 / 4 * (1 * 1 / (3 * 1)) * math.exp(-1 / 72)
    assert longer.value == pytest.approx((first + 5) / 2)
    several = cider_d(["red cat", "red dog"], [["red cat", "blue fish"], ["red dog"]])
    assert several.value == pytest.approx((2.5 + 5) / 2)
    with pytest.raises(ValueError, match="numbers differ, or a list is empty"):
        cider_d(["a"], [[]])


def test_captions_as_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "written.jsonl", tmp_path / "scores.json"
    rows = [("red cat", ["red cat", "blue fish"]), ("red dog", ["red dog"])]
    path.write_text("\n".join(json.dumps({"candidate": c, "references": r}) for c, r in rows) + "\n\n")
    assert app.main(["eval", "captions", str(path), "--out", str(out)]) == 0
    scores = {score.name: score for score in read_scores(out)}
    assert scores["cider-d@2"].value == pytest.approx(3.75) and scores["cider-d@2"].interval is not None
    assert scores["bleu-4@2"].value == 0 and "cider-d@2" in capsys.readouterr().out
    assert scores["cider-d@2"].protocol.captions == "1.5 references each"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot read"),
        ('{"candidate": "a", "references": ["a"]}', "has 1 caption;"),
        ("", "has 0 captions"),
        ('{"candidate": "a"}', "line 1 of"),
        ('{"candidate": "a", "references": []}', "line 1 of"),
        ('{"candidate": "a", "references": ["b", 3]}', "line 1 of"),
        ("no json", "line 1 of"),
    ],
)
def test_wrong_files_of_captions(
    text: str | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "written.jsonl"
    if text is not None:
        path.write_text(text)
    assert app.main(["eval", "captions", str(path)]) == 2
    err = capsys.readouterr().err
    assert words in err and "written.jsonl" in err and len(err.splitlines()) == 1


# ---------------------------------------------------------------- reconstructions


def test_reconstructions_by_hand_and_against_torchmetrics() -> None:
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    true = np.random.default_rng(0).integers(0, 246, (3, 24, 24, 3)).astype(np.uint8)
    made = true.copy()
    made[0] += 10
    made[1, :12] += 7
    assert psnr(made, true) == pytest.approx([20 * math.log10(25.5), 10 * math.log10(255**2 / 24.5), 100])
    found = ssim(made, true)
    assert found[2] == pytest.approx(1) and (found[:2] < 1).all()
    tensors = [torch.from_numpy(x[:1]).permute(0, 3, 1, 2).double() for x in (made, true)]
    theirs = structural_similarity_index_measure(*tensors, data_range=255.0)
    assert found[0] == pytest.approx(float(theirs), abs=1e-4)

    class Difference(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return (a - b).mean(dim=(1, 2, 3), keepdim=True)

    assert perceptual(Difference(), made, true) == pytest.approx([10 / 127.5, 3.5 / 127.5, 0], abs=1e-6)


@pytest.mark.filterwarnings("ignore:FID of")
def test_a_tokenizer_is_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "vq")
    assert app.main(["eval", "tokenizer", str(run), "--split", "heldout", "-n", "20", "--force"]) == 0
    out, err = capsys.readouterr()
    assert "has no record of its training data" in err
    scores = {score.name: score for score in read_scores(run / "scores-heldout.json")}
    assert {"psnr@20", "ssim@20", "rfid-shapes@20", "kid-shapes@20", "faithfulness-strict@20"} <= set(scores)
    assert all(name in out for name in ("psnr@20", "rfid-shapes@20"))
    protocol = scores["psnr@20"].protocol
    assert (protocol.sampling, protocol.split, protocol.resolution) == ("reconstruction", "heldout", 32)
    assert protocol.checkpoint == load_tokenizer(run).digest()
    assert scores["faithfulness-strict@20"].bounds["real"] == 1.0 > scores["faithfulness-strict@20"].value
    tokenizer, data = load_tokenizer(run), open_dataset("shapes-2", "heldout", View(32))
    every = data.images(range(len(data)))
    values = psnr(tokenizer.decode(tokenizer.encode(every)), every)
    assert values.min() < scores["psnr@20"].value < values.max()
    assert app.main(["eval", "tokenizer", str(run), "--out", str(tmp_path / "none" / "s.json")]) == 2
    assert app.main(["eval", "tokenizer", str(tmp_path)]) == 2
