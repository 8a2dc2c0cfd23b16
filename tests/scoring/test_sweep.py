"""`t2i eval sweep`: the best setting, refused splits, and output."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from builders.commands import command_lines
from builders.tiny_prior_run import make_prior_run
from builders.tiny_run import make_run
from t2i.errors import InputError
from t2i.metrics.score import Score, ScoreProtocol
from t2i.pipeline import TextToImagePipeline
from t2i.report.sweep import lines_of, sweep_chart
from t2i.scoring.options import ScoreOptions
from t2i.scoring.runs import score_run
from t2i.scoring.sweep import Point, best, combinations, defaults_of, on_the_front

SVG = "{http://www.w3.org/2000/svg}"
pytestmark = pytest.mark.filterwarnings("ignore:FID of .* is biased upward")


@pytest.fixture
def t2i(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    return command_lines(capsys, "eval", "sweep")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {"prior": make_prior_run(folder / "prior"), "cgan": make_run(folder / "cgan")}


def point(fid: float, faithful: float, interval: tuple[float, float] | None = None, **knobs) -> Point:
    common = {
        "metric_version": 1, "n_real": 9, "n_fake": 9, "data": "shapes-1", "data_digest": "", "split": "val",
        "captions": None, "resize": None, "resolution": 16, "seed": 0,
    }  # fmt: skip
    frechet = ScoreProtocol(metric="fid", extractor="shapes", extractor_digest="d", **common)
    oracle = ScoreProtocol(metric="faithfulness-strict", extractor=None, extractor_digest=None, **common)
    return Point(knobs or {"guidance": fid}, [Score(fid, frechet), Score(faithful, oracle, interval)])


def test_the_best_is_the_nearest_of_the_most_faithful():
    points = [
        point(1.0, 0.5, (0.4, 0.6)),
        point(2.0, 0.72, (0.62, 0.82)),
        point(3.0, 0.8, (0.7, 0.9)),
        point(4.0, 0.79, (0.7, 0.9)),
    ]
    assert best(points) == 1  # 0.72 is within what chance makes of 0.8, and 0.5 is not
    assert best([*points, point(9.0, 0.95, (0.93, 0.97))]) == 4
    assert on_the_front(points) == [True, True, True, False]
    assert best([point(2.0, 0.5), point(1.0, 0.4)]) == 0  # without an interval: the most faithful


def test_combinations():
    assert combinations({"guidance": [1.0, 2.0], "top_k": [5, None], "steps": []}) == [
        {"guidance": 1.0, "top_k": 5}, {"guidance": 1.0, "top_k": None},
        {"guidance": 2.0, "top_k": 5}, {"guidance": 2.0, "top_k": None},
    ]  # fmt: skip
    assert combinations({"guidance": [1.0, 1.0]}) == [{"guidance": 1.0}]
    with pytest.raises(InputError, match="no setting to try"):
        combinations({})
    kept = defaults_of({"guidance": 2.0, "top_k": None})
    assert (kept.guidance_scale, kept.truncation, kept.settings) == (2.0, 1.0, {"top_k": None})


def test_the_picture_shows_a_line_for_each_temperature():
    points = [point(1 + g + t, g / 4, guidance=g, temperature=t) for g in (1.0, 2.0) for t in (0.7, 1.0)]
    assert lines_of(points) == ("guidance", {"temperature 0.7": [0, 2], "temperature 1": [1, 3]})
    drawn = ElementTree.fromstring(sweep_chart(points, "a <title> & more"))
    curves = [one.get("d", "") for one in drawn.iter(f"{SVG}path") if str(one.get("class")).startswith("line c")]
    ends = [tuple(map(float, end.split())) for end in curves[0].removeprefix("M").split("L")]
    assert len(curves) == 4 and len(ends) == 2, "two lines, and each again in the legend"
    assert ends[1][0] > ends[0][0] and ends[1][1] < ends[0][1], "farther from the real images, and more faithful"
    words = ["".join(one.itertext()) for one in drawn.iter(f"{SVG}text")]
    assert words[0] == "a <title> & more" and {"temperature 0.7", "temperature 1", "numbers: guidance"} <= set(words)
    (circle,) = [one for one in drawn.iter(f"{SVG}circle") if one.get("class") == "chosen"]
    assert (circle.get("cx"), circle.get("cy")) == tuple(f"{x:.1f}" for x in ends[1])
    ElementTree.fromstring(sweep_chart([point(1.0, 0.0)], "one setting"))  # axes of no extent


def test_a_prior_is_swept(t2i, runs):
    run = Path(shutil.copytree(runs["prior"], "run"))
    words = ["--guidance", "1,3", "--temperature", "0.5,1", "--steps", "4", "-n", 8, "--force"]
    status, out, err = t2i("run", *words)
    assert status == 0, err
    assert out[0].split()[:3] == ["guidance", "temperature", "steps"] and len(out) == 1 + 4 + 3
    assert sum("best" in line for line in out[1:5]) == 1
    found = json.loads((run / "sweep-shapes-1-val-8.json").read_text())
    knobs = [one["knobs"] for one in found["settings"]]
    assert knobs[1] == {"guidance": 1.0, "temperature": 1.0, "steps": 4} and len(knobs) == 4
    assert found["best"] in knobs and "faithfulness is at least" in found["rule"]
    protocols = [score["protocol"] for one in found["settings"] for score in one["scores"]]
    assert {p["guidance"] for p in protocols} == {1.0, 3.0} and {p["temperature"] for p in protocols} == {0.5, 1.0}
    assert {json.loads(p["sampling"])["steps"] for p in protocols} == {4}
    assert ElementTree.parse(run / "sweep-shapes-1-val-8.svg").getroot().get("viewBox") == "0 0 900 560"
    assert str(run / "sampling.json") in out[6] and not (run / "sampling.json").exists()
    # each as `t2i eval score` would have it
    options = ScoreOptions(target=str(run), n=8, guidance=3.0, temperature=0.5, steps=4, force=True)
    alone = {score.name: score.value for score in score_run(options)}
    assert {score["name"]: score["value"] for score in found["settings"][2]["scores"]} == alone


def test_a_gan_is_swept_and_keeps_the_best(t2i, runs):
    run = Path(shutil.copytree(runs["cgan"], "run"))
    status, out, err = t2i(
        "run", "--guidance", "2", "--truncation", "0.5,1", "-n", 8, "--force", "--make-default", "--out", "a.json"
    )
    assert status == 0, err
    chosen = json.loads(Path("a.json").read_text())["best"]
    pipe = TextToImagePipeline.from_pretrained(run)
    assert (pipe.guidance_scale, pipe.truncation) == (2.0, chosen["truncation"])
    assert Path("a.svg").exists()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("prior", "no setting to try; name values of at least one"),
        ("prior --guidance 1,x", "--guidance 1,x: 'x' is not a number"),
        ("prior --top-k 1.5", "--top-k 1.5: '1.5' is not a whole number or all"),
        ("prior --guidance 1,-1", "guidance must be a number from 0 on, got -1.0"),
        ("prior --top-k 99", "top_k 99 is more than the 32 codes"),
        ("cgan --temperature 1", "a GAN has no setting 'temperature'"),
        ("prior --truncation .5", "truncation 0.5 is a setting of a GAN"),
        ("prior --guidance 1 --split heldout", "split heldout is kept back for scores"),
        ("prior --guidance 1 --out no/a.json", "--out no/a.json cannot be written"),
        ("prior --guidance 1 -n 8", "is meaningless"),
    ],
)
def test_bad_input_is_one_line(t2i, runs, argv, says):
    name, *words = argv.split()
    status, out, err = t2i(runs[name], *words)
    assert status == 2 and out == [] and len(err) == 1 and says in err[0], err
    assert not list(runs[name].glob("sweep*"))
