"""`t2i eval compare`, and prompts and protocols by name: pairs, differences, and what chance explains."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from builders.commands import Command, command_line
from builders.scored_runs import embedded, save_run, values  # noqa: F401  # pytest finds fixtures by name
from t2i.errors import InputError
from t2i.metrics.score import read_scores, write_scores
from t2i.scoring.comparison import Samples, beside, compare, paired_difference, read_samples
from t2i.scoring.protocols import PROTOCOLS, settle


@pytest.fixture
def t2i(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedded: str) -> Command:  # noqa: F811
    monkeypatch.chdir(tmp_path)
    return command_line(capsys, "eval")


# ---------------------------------------------------------------- the test


def test_the_interval_covers_the_difference_as_often_as_it_says() -> None:
    """Images differ by 0.3 on average and prompts by far more; pairing removes the latter."""
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(60):
        prompts = rng.normal(0, 10, 80)
        first, second = (prompts + rng.normal(mean, 1, 80) for mean in (0, 0.3))
        found = paired_difference(first, second, seed=trial)
        inside += found.interval[0] <= 0.3 <= found.interval[1]
        assert found.value == pytest.approx(float((second - first).mean()))
    assert inside >= 52


def test_chance_is_told_from_a_difference() -> None:
    rng = np.random.default_rng(1)
    flags = rng.random(400) < 0.5
    better = flags | (rng.random(400) < 0.2)
    found = paired_difference(flags.astype(float), better.astype(float))
    assert found.p < 0.001 and found.interval[0] > 0 and found.count == 400
    same = paired_difference(flags.astype(float), flags.astype(float))
    assert same.p == 1.0 and same.interval == (0.0, 0.0)
    coin = paired_difference(flags.astype(float), (rng.random(400) < 0.5).astype(float))
    assert coin.p > 0.05


def test_pictures_of_one_prompt_are_drawn_together() -> None:
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(30), 10)
    first = np.zeros(300)
    second = np.repeat(rng.normal(0, 1, 30), 10)  # ten pictures tell no more than one
    wide, narrow = paired_difference(first, second, groups), paired_difference(first, second)
    assert np.diff(wide.interval)[0] > 2.5 * np.diff(narrow.interval)[0]
    gaps = np.where(groups < 3, np.nan, 1.0)
    assert paired_difference(first * gaps, second * gaps, groups).count == 270
    with pytest.raises(ValueError, match="the two score different images"):
        paired_difference(first * gaps, second, groups)


# ---------------------------------------------------------------- files


def test_two_models_on_the_same_captions(t2i: Command, tmp_path: Path) -> None:
    run, other = save_run(tmp_path / "a"), tmp_path / "b"
    shutil.copytree(run, other)
    words = (
        "--split",
        "heldout",
        "-n",
        40,
        "--force",
        "--metrics",
        "faithfulness,fid-shapes,clip-aligned,diversity-pixels",
    )
    assert t2i("score", run, *words, "--out", "a.json")[0] == 0
    assert t2i("score", other, *words, "--truncation", 0, "--out", "b.json")[0] == 0
    samples = read_samples(Path("a.json"))
    scores = values(read_scores(Path("a.json")))
    assert len(samples.prompts) == 40 and "fid-shapes@40" not in samples.values
    for name in ("faithfulness-strict", "faithfulness-colour", "clip-aligned", "faithfulness-colour-unseen-pair"):
        assert np.nanmean(samples.values[scores[name].name]) == pytest.approx(scores[name].value, rel=1e-6)
    status, out, err = t2i("compare", "a.json", "b.json")
    assert status == 0 and "truncation: 1.0 / 0.0 (all)" in err and len(err.splitlines()) == 1
    head, *lines = out.splitlines()
    assert head.split()[:5] == ["score", "a", "b", "difference", "(95"]
    line = next(line for line in lines if line.startswith("clip-aligned@40"))
    assert "*" in line and ".." in line
    assert "one number for all images: fid-shapes@40" in lines[-1] and "diversity-pixels" in lines[-1]
    lined = {line.name: line for line in compare([Path("a.json"), Path("b.json"), Path("a.json")])}
    first, again = lined["clip-aligned@40"].differences
    assert first is not None and first.count == 40
    assert again is not None and again.value == 0 and lined["clip-aligned@40"].differing[1] == []
    # the same pictures in another order pair by caption
    order = np.random.default_rng(0).permutation(40)
    shuffled = Samples(samples.prompts[order], {name: its[order] for name, its in samples.values.items()})
    write_scores(Path("c.json"), read_scores(Path("a.json")))
    shuffled.write(beside(Path("c.json")))
    (found,) = {line.name: line for line in compare([Path("a.json"), Path("c.json")])}["clip-aligned@40"].differences
    assert found is not None and abs(found.value) < 1e-6 and found.interval == pytest.approx((0, 0), abs=1e-6)
    # without what each picture scored, or on other captions, nothing is tested
    beside(Path("c.json")).unlink()
    assert "no .safetensors file with the scores of single images" in t2i("compare", "a.json", "c.json")[1]
    Samples(samples.prompts + 1, samples.values).write(beside(Path("c.json")))
    assert "not tested, other captions" in t2i("compare", "a.json", "c.json")[1]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("a.json", "got 1 score file to compare"),
        ("a.json none.json", "cannot read none.json"),
        ("a.json text.json", "is not a score file"),
        ("a.json damaged.json", "damaged.safetensors is damaged"),
        ("a.json other.json", "no score is in two of these files"),
    ],
)
def test_bad_files_are_one_line(t2i: Command, argv: str, says: str) -> None:
    scores = [score_of("fid"), score_of("kid")]
    write_scores(Path("a.json"), scores[:1])
    write_scores(Path("damaged.json"), scores[:1])
    write_scores(Path("other.json"), scores[1:])
    Path("text.json").write_text("{}")
    Path("damaged.safetensors").write_bytes(b"x")
    status, out, err = t2i("compare", *argv.split())
    assert (status, out) == (2, "") and says in err and len(err.splitlines()) == 1


def score_of(metric: str):
    from t2i.metrics.score import Score, ScoreProtocol

    return Score(1.0, ScoreProtocol(metric, 1, "shapes", "d" * 64, 9, 9, "shapes-2", "", "val", None, None, 16, 0))


# ---------------------------------------------------------------- prompts, protocols


def test_prompts_are_scored_without_real_pictures(t2i: Command, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run")
    prompts = [f"a {size} {colour} {shape}" for size in ("small", "large") for colour in COLOURS for shape in SHAPES]
    Path("p.tsv").write_text("Prompt\tCategory\n" + "".join(f"{prompt}\tx\n" for prompt in prompts))
    Path("p.jsonl").write_text("".join(f'{{"prompt": "{prompt}"}}\n' for prompt in prompts))
    Path("p.txt").write_text("\n".join(prompts))
    names = "clip-aligned,r-precision-aligned,retrieval-aligned,faithfulness,diversity-pixels"
    found = []
    for file in ("p.tsv", "p.jsonl", "p.txt"):
        assert t2i("score", run, "--prompts", file, "--metrics", names, "--out", f"{file}.json")[0] == 0
        found.append(values(read_scores(Path(f"{file}.json"))))
    assert {name: score.value for name, score in found[0].items()} == {n: s.value for n, s in found[2].items()}
    protocol = found[0]["clip-aligned"].protocol
    assert protocol.n_fake == len(prompts) and protocol.n_real is None and protocol.data == "prompts:p.tsv"
    assert set(found[0]["clip-aligned"].bounds) == {"shuffled"}
    status, _, err = t2i("score", run, "--prompts", "p.txt", "-n", 120)
    assert status == 0 and "skipped fid-shapes: there are no real images" in err
    assert (run / "scores-prompts-p.txt-120.json").is_file()


COLOURS = ("red", "blue", "green", "yellow", "purple", "orange", "cyan", "pink")
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "diamond")


def test_a_protocol_by_name(t2i: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    few = replace(PROTOCOLS["shapes-heldout"], n=40, resolution=16, metrics=("faithfulness", "kid-shapes"))
    monkeypatch.setitem(PROTOCOLS, "shapes-heldout", few)
    run = save_run(tmp_path / "run")
    assert t2i("score", run, "--protocol", "shapes-heldout", "--out", "named.json")[0] == 0
    words = ("--data", "shapes-2", "--split", "heldout", "-n", 40, "--metrics", "faithfulness,kid-shapes")
    assert t2i("score", run, *words, "--out", "plain.json")[0] == 0
    named, plain = read_scores(Path("named.json")), read_scores(Path("plain.json"))
    assert [score.value for score in named] == [score.value for score in plain]
    assert {score.protocol.named for score in named} == {"shapes-heldout"}
    status, _, err = t2i("compare", "named.json", "plain.json")
    assert (status, err) == (0, "")


def test_protocols_name_what_there_is() -> None:
    from t2i.data import DATASETS
    from t2i.extractors import EXTRACTORS
    from t2i.metrics import METRICS

    for name, protocol in PROTOCOLS.items():
        assert protocol.kind is None or protocol.kind in DATASETS
        assert set(protocol.files) <= set(EXTRACTORS)
        for metric in protocol.metrics:
            assert any(metric == known or metric.startswith(f"{known}-") for known in METRICS), (name, metric)


def test_coco_30k_is_val2014(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_val2014.json").write_text('{"images": [], "annotations": []}')
    given = {"data": str(tmp_path), "inception": Path("i"), "clip": Path("c"), "split": None, "n": 30_000}
    found = settle("coco-30k", given)
    assert (
        found["data"] == f"coco:{tmp_path}?split=train2014" and found["split"] == "val" and found["resolution"] == 256
    )
    with pytest.raises(InputError, match="split=train2017, but the protocol coco-30k needs train2014"):
        settle("coco-30k", given | {"data": f"coco:{tmp_path}?split=train2017"})
