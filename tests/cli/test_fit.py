"""`t2i fit`: plans, refusals, and one complete fit that is killed and started again."""

import io
import json
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from builders.forks import fork, wait
from t2i import checkpoint
from t2i.cli import app
from t2i.cli.fit import data as looks
from t2i.cli.fit import plan, program, tour
from t2i.cli.fit.plan import Chosen, Facts, choose, is_stale, needed, schedule, steps
from t2i.cli.fit.words import expectations
from t2i.config.load import load
from t2i.families import config_class
from t2i.images import save_png
from t2i.metrics.score import read_scores
from t2i.pipeline import TextToImagePipeline
from t2i.report import gallery
from t2i.training.journal import read

MANY = Facts("folder", train=40_000, val=2_000, side=256)
SOME = Facts("folder", train=450, val=25, side=256)
FEW = Facts("folder", train=40, val=2, side=256)


# ---- the plan ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "speed", "minutes", "family", "resolution", "codes", "text", "judge"),
    [
        (MANY, 1.0, 60, "prior", 64, 4096, "bow", True),
        (MANY, 0.1, 60, "prior", 32, 2048, "bow", True),  # too slow for larger images
        (MANY, 8.0, 60, "prior", 64, 4096, "bow", True),
        (MANY, 1.0, 10, "prior", 32, 2048, "bow", True),  # too little time for them
        (MANY._replace(side=40), 1.0, 60, "prior", 32, 2048, "bow", True),  # the images are no larger
        (MANY._replace(spaced=False), 1.0, 60, "prior", 64, 4096, "align", True),  # no words to tell apart
        (MANY._replace(rendered=True), 1.0, 60, "prior", 64, 4096, "bow", False),  # the embedded scorer knows them
        (MANY, 1.0, 60, "cgan", 64, 4096, "align", True),
        (SOME, 1.0, 60, "cgan", 64, 1024, "bow", False),
        (SOME, 1.0, 60, "cvae", 64, 1024, "bow", False),
        (FEW, 1.0, 5, "prior", 32, 128, "bow", False),
    ],
)
def test_sizes_follow_from_data_machine_and_minutes(facts, speed, minutes, family, resolution, codes, text, judge):
    chosen = choose(facts, speed, minutes, family)
    assert (chosen.resolution, chosen.codes, chosen.text, chosen.judge) == (resolution, codes, text, judge)
    assert chosen.codes <= facts.train * 64


@pytest.mark.parametrize("facts", [MANY, SOME, FEW, MANY._replace(spaced=False)])
@pytest.mark.parametrize("speed", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("minutes", [0.5, 6.0, 60.0, 600.0])
@pytest.mark.parametrize("family", ["prior", "cvae", "cgan"])
def test_every_command_of_a_plan_is_one_and_keeps_within_the_minutes(facts, speed, minutes, family):
    chosen = choose(facts, speed, minutes, family)
    timed = schedule(chosen, speed, minutes)
    assert 0 < sum(one.minutes for one in timed) <= max(minutes, 0.03) and needed(timed) <= minutes
    assert timed[-1].minutes >= 0.3 * minutes, "the generator is what it is for"
    tour = steps(chosen, timed, Path("it's [r]"))
    for step, one in zip(tour, timed, strict=False):
        sets = [word for k, word in enumerate(step.argv) if step.argv[k - 1] == "--set"]
        config: Any = load(config_class(step.argv[1]), step.argv[3], sets)
        assert config.data.resolution == chosen.resolution and config.max_train_minutes == one.minutes
        assert config.lr_warmup_steps <= max(5, timed[-1].fits / 10) + 1
    assert shlex.split(tour[0].command)[0] == "t2i"
    assert ("scores" in [step.name for step in tour]) == (facts.val >= plan.LEAST_CAPTIONS)
    if family != "cgan":
        assert config.tokenizer.path == str(Path("it's [r]") / "tokenizer")
    assert config.text.encoder == ("bow" if chosen.text == "bow" else "aligned")


def test_little_data_is_seen_often_and_not_for_ever():
    chosen = choose(SOME, 1.0, 600.0, "prior")
    timed = schedule(chosen, 1.0, 600.0)
    assert [one.steps * one.stage.batch // SOME.train for one in timed] == [299, 199]
    assert any("more time would not" in line for line in expectations(chosen, timed, 1.0, 600.0))


def test_what_is_short_is_said():
    def said(facts: Facts, speed: float, minutes: float) -> str:
        chosen = choose(facts, speed, minutes, "prior")
        return "\n".join(expectations(chosen, schedule(chosen, speed, minutes), speed, minutes))

    assert "6 minutes are too few for recognisable images on this machine; about 40 are needed for some" in said(
        MANY, 0.1, 6
    )
    assert "will mostly repeat them" in said(FEW, 1.0, 6) and "val has 2 images" in said(FEW, 1.0, 6)
    assert "expect colours and rough layout" in said(SOME, 1.0, 6) and "25 held-out captions" in said(SOME, 1.0, 6)
    assert said(MANY, 1.0, 60) == ""


def test_more_minutes_go_to_the_generator_until_the_tokenizer_needs_them_too():
    chosen = choose(MANY, 1.0, 10, "prior")
    kept = {one.stage.name: one.minutes for one in schedule(chosen, 1.0, 10)[:-1]}
    little, much = schedule(chosen, 1.0, 12, kept), schedule(chosen, 1.0, 60, kept)
    assert {one.stage.name: one.minutes for one in little[:-1]} == kept and not is_stale(chosen, little, kept)
    assert little[-1].minutes > schedule(chosen, 1.0, 10)[-1].minutes
    assert much[1].minutes > kept["tokenizer"] and is_stale(chosen, much, kept)
    gan = choose(SOME, 1.0, 10, "cgan")
    assert not is_stale(gan, much, kept), "it reads no tokenizer"


@pytest.mark.parametrize(
    ("address", "name"),
    [("/data/my cats/", "my-cats"), ("coco:/a/coco?split=train2014", "coco"), ("shapes-2", "shapes-2"), ("/", "data")],
)
def test_the_folder_is_named_after_the_data(address, name):
    assert program.name_of(address) == name


# ---- what it refuses -----------------------------------------------------------------------------------------------


def folder_of(place: Path, count: int, side: int = 40) -> Path:
    """Writes coloured squares on grey, with a .txt each, in three formats."""
    colours = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
    place.mkdir(parents=True)
    for i in range(count):
        name = list(colours)[i % 3]
        image = Image.new("RGB", (side, side), (128, 128, 128))
        image.paste(colours[name], (5 + i % 7, 5 + i % 11, 20 + i % 7, 20 + i % 11))
        image.save(place / f"{i:03d}.{('png', 'jpg', 'webp')[i % 3]}")
        (place / f"{i:03d}.txt").write_text(f"a {name} square number {i % 5}")
    return place


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Changes to an empty folder; the machine is not measured and nothing is run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program, "machine_speed", lambda command: pytest.fail("measured"))
    return tmp_path


def refusal(*argv: str, capsys: pytest.CaptureFixture[str]) -> str:
    status = app.main(["fit", *argv])
    err = capsys.readouterr().err
    assert status == 2 and err.count("error: ") == 1 and err.rstrip().count("\n") == 0, err
    return err


def test_bad_input_is_one_line(never: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (never / "empty").mkdir()
    folder_of(never / "one", 1)
    (never / "file.png").write_bytes(b"x")
    (never / "bare").mkdir()
    save_png(np.zeros((8, 8, 3), np.uint8), never / "bare" / "a.png")
    for words, says in (
        (("empty",), "is an empty folder"),
        (("one",), "to train on; provide at least 16"),
        (("file.png",), "is a file, not a folder"),
        (("nowhere",), "not found"),
        (("bare",), "no captions"),
        (("one", "--minutes", "0"), "--minutes 0"),
        (("one", "--family", "gan"), "'gan'"),
        (("one", "--run-dir", "file.png"), "file.png"),
        (("one", "--run-dir", "bare"), "bare is not empty and does not hold a fit"),
    ):
        assert says in refusal(*words, capsys=capsys), words
    assert sorted(path.name for path in never.iterdir()) == ["bare", "empty", "file.png", "one"]


def test_a_folder_with_another_fit_is_refused(never: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = choose(SOME._replace(address="other"), 1.0, 6, "prior")
    (never / "r").mkdir()
    (never / "r" / "plan.json").write_text(program.StoredPlan(speed=1, families={"prior": chosen}).model_dump_json())
    assert "r holds a fit of other, not of one; name another folder" in refusal("one", "--run-dir", "r", capsys=capsys)
    for damage in ("", "[]", '{"speed": 1, "families": {"prior": {}}}'):
        (never / "r" / "plan.json").write_text(damage)
        assert "plan.json is not a plan of a fit" in refusal("one", "--run-dir", "r", capsys=capsys)


def test_captions_without_blanks_get_an_encoder_that_needs_none(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "d", 20)
    for path in place.glob("*.txt"):
        path.write_text("草地上的一只猫", "utf-8")
    facts = looks.look(str(place), lambda text: None)
    assert not facts.spaced and not facts.rendered and facts.side == 40 and choose(facts, 1, 5, "prior").text == "align"


def test_a_plan_is_printed_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program, "machine_speed", lambda command: 1.0)
    monkeypatch.setattr(program, "carry_out", lambda *_: pytest.fail("run"))
    folder_of(tmp_path / "d", 30)
    assert app.main(["fit", "d", "--plan", "--minutes", "6"]) == 0
    out = capsys.readouterr().out
    assert "images               30, usable 30" in out and "model      prior, 32 x 32 pixels" in out
    lines = [line.strip() for line in out.splitlines() if line.startswith("  t2i ")]
    assert [shlex.split(line)[1:3] for line in lines] == [
        ["train", "vqvae"],
        ["train", "prior"],
        ["sample", "runs/fit-d/prior"],
    ]
    assert "there will be no scores" in out and not (tmp_path / "runs").exists()
    assert app.main(["fit", "shapes-1", "--dry-run", "--family", "cgan"]) == 0
    assert "t2i train align" in capsys.readouterr().out


# ---- one fit, killed and typed again -------------------------------------------------------------------------------


class Fitted(NamedTuple):
    folder: Path
    out: str  # of the second start
    killed_at: int  # step of the prior's checkpoint that the first start left


def go(data: Path, folder: Path, command: Callable[[list[str]], int], **more: Any) -> str:
    printed = io.StringIO()
    with redirect_stdout(printed):
        program.fit(program.FitOptions(data=str(data), minutes=30, run=folder, **more), command)
    return printed.getvalue()


def killed_in_the_prior(argv: list[str]) -> int:
    """Runs a command, and kills the process when the prior has its first checkpoint."""
    if argv[1] == "prior":
        checkpoints = Path(argv[-1]) / "checkpoints"

        def kill() -> None:
            while checkpoint.latest(checkpoints) is None:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=kill, daemon=True).start()
    return app.main(argv)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fitted]:
    """The settings of its plan are used by all tests of the module that read it."""
    base = tmp_path_factory.mktemp("a b")
    data, folder = folder_of(base / "it's data", 260), base / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "machine_speed", lambda command: 0.2)
        patch.setattr(tour, "NEIGHBOURS", 20)
        patch.setattr(gallery, "SHOWN", 3)
        # so few steps that no machine is too slow for them
        patch.setitem(plan.TOKENIZERS, 32, plan.TOKENIZERS[32]._replace(images=8 * 32))
        patch.setitem(plan.GENERATORS, ("prior", 32), plan.GENERATORS["prior", 32]._replace(images=6 * 64))
        assert wait(fork(lambda: go(data, folder, killed_in_the_prior)), 250) == -signal.SIGKILL
        kept = int(checkpoint.steps(folder / "prior" / "checkpoints")[-1].name[5:])
        patch.setattr(program, "look", lambda *_: pytest.fail("the data is looked at again"))
        patch.setattr(program, "machine_speed", lambda command: pytest.fail("measured again"))
        yield Fitted(folder, go(data, folder, app.main), kept)


def test_a_killed_fit_goes_on_where_it_was(fitted: Fitted) -> None:
    assert "[1/4] tokenizer: finished before" in fitted.out and "[2/4] prior: t2i train prior" in fitted.out
    at = [record["step"] for record in read(fitted.folder / "prior" / "journal.jsonl")]
    assert 0 < fitted.killed_at < 6 and at == sorted(at) and at[-1] == 6


def test_a_fit_leaves_a_model_scores_images_and_a_page(fitted: Fitted) -> None:
    folder = fitted.folder
    scores = read_scores(folder / "prior" / "scores-val.json")
    assert {score.protocol.split for score in scores} == {"val"} and scores[0].protocol.n_fake >= plan.LEAST_CAPTIONS
    prompts = (folder / "prompts.txt").read_text().splitlines()
    made = json.loads((folder / "images-prior" / "manifest.json").read_text())
    assert [entry["prompt"] for entry in made["pictures"]] == prompts
    pipe = TextToImagePipeline.from_pretrained(str(folder / "model-prior"))
    assert pipe(prompts[0], seed=1).images[0].size == (32, 32)
    page = (folder / "index.html").read_text("utf-8")
    assert "t2i fit of it-s-data" in page and "Train longer" in page and "<summary>tokenizer</summary>" in page
    sample = fitted.out.rstrip().rpartition("next: ")[2]
    assert shlex.split(sample)[1:] == ["sample", str(folder / "model-prior"), prompts[0], "-n", "4"]


def test_typed_once_more_it_trains_nothing(fitted: Fitted) -> None:
    data = Chosen(**json.loads((fitted.folder / "plan.json").read_text())["families"]["prior"]).address
    out = go(Path(data), fitted.folder, lambda argv: pytest.fail(f"{argv} was run again"))
    assert out.count("finished before") == 4
