"""The quickstart: run once completely with untrained models, then resumed, skipped and interrupted."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from PIL import Image

from t2i.cli import app, quickstart
from t2i.cli import steps as plan
from t2i.cli.fit import probe, program, record
from t2i.cli.fit import tour as carrying
from t2i.config.load import load
from t2i.data import View, open_dataset
from t2i.errors import InputError
from t2i.extractors import aligned
from t2i.families import config_class
from t2i.metrics.score import Score, ScoreProtocol, read_scores, write_scores
from t2i.report import gallery
from t2i.report.page import SPLITS
from t2i.training.journal import read

TINY_ALIGN = (
    "data.limit=200",
    "embedding=8",
    "text_tower={vocabulary: 300, width: 16, depth: 1, heads: 2}",
    "image_tower={width: 8, width_limit: 8}",
    "train_batch_size=8",
    "max_train_steps=2",
)
TINY_VQVAE = (
    "data.limit=200",
    "autoencoder={width: 8, width_limit: 8}",
    "quantizer={codebook_size: 8, warmup_steps: 1}",
    "train_batch_size=4",
    "max_train_steps=3",
)
TINY_PRIOR = (
    "data.limit=200",
    "model={width: 16, depth: 1, heads: 1, mlp_width: 16}",
    "train_batch_size=4",
    "max_train_steps=2",
)
TINY_CVAE = (
    "data.limit=200",
    "model={width: 16, depth: 1, heads: 1, posterior_width: 8}",
    "critic={start: 0.5, depth: 1}",
    "train_batch_size=4",
    "max_train_steps=2",
)
TINY_CGAN = (
    "data.limit=200",
    "generator={z_dim: 4, w_dim: 8, width: 8, width_limit: 8}",
    "discriminator={width: 8, width_limit: 8, feature_dim: 8}",
    "train_batch_size=4",
    "log_steps=1",
)
PLAN = plan.fitted(1.0, 1.0, "cgan")
NAMES = ["text encoder", "generator", "images of cgan", "score of cgan on val", "score of cgan on heldout"]


# ---- the plan ------------------------------------------------------------------------------------------------------


def test_the_machine_is_measured_once_by_real_steps(tmp_path):
    asked: list[list[str]] = []

    def command(argv: list[str]) -> int:
        asked.append(argv)
        run = Path(argv[argv.index("--run-dir") + 1])
        run.mkdir()
        (run / "journal.jsonl").write_text(
            '{"step": 4, "images_per_second": 90}\n{"step": 8, "images_per_second": 98}\n'
        )
        return 0

    assert quickstart.speed_of(tmp_path, command) == quickstart.speed_of(tmp_path, command) == 0.2
    assert len(asked) == 1 and asked[0][:2] == ["train", "vqvae"]
    assert not Path(asked[0][-1]).exists() and os.listdir(tmp_path) == ["speed.json"]


def test_a_measurement_tells_what_the_run_told_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(probe.tempfile, "tempdir", str(tmp_path))
    sets = [*TINY_VQVAE[1:-1], "data.limit=64"]
    found = probe.measured("vqvae", "vqvae-tiny", sets, app.main, "shapes-1")
    assert found.images_per_second > 0 and found.memory > 1e8 and found.device.startswith("CPU")
    assert re.fullmatch(r"model [\d,]+", found.parameters)
    assert [name for name in os.listdir(tmp_path) if name.startswith("t2i")] == []
    assert capsys.readouterr() == ("", "")
    with pytest.raises(InputError, match=r"^data 'nowhere' not found"):
        probe.measured("vqvae", "vqvae-tiny", sets, app.main, "nowhere")
    with pytest.raises(SystemExit) as stopped:
        probe.measured("vqvae", "vqvae-tiny", sets, lambda argv: 85)
    assert stopped.value.code == 85


@pytest.mark.parametrize(("speed", "minutes", "tokenizer_steps"), [(1.0, 4.0, 1600), (0.4, 5.0, 800), (0.1, 20.0, 800)])
def test_a_slow_machine_trains_until_images_are_recognisable(speed, minutes, tokenizer_steps):
    found = plan.fitted(4.0, speed, "prior")
    assert found.minutes == minutes and ("recognisable images need" in found.describe(4.0)) == (minutes > 4.0)
    for step, steps in zip(plan.trainings(Path("q"), found, "prior"), (tokenizer_steps, 1_000_000), strict=True):
        sets = [word for k, word in enumerate(step.argv) if step.argv[k - 1] == "--set"]
        config: Any = load(config_class(step.argv[1]), step.argv[3], sets)
        assert config.max_train_steps == steps
    assert plan.fitted(4.0, 0.1, "cgan").minutes == 20.0


@pytest.mark.parametrize(
    ("right", "says"), [(0.02, "scores mean little; to continue, type: "), (0.9, "90% of the images")]
)
def test_a_number_that_means_nothing_yet_is_said_to(tmp_path, right, says):
    protocol = ScoreProtocol(metric="faithfulness-strict", n_fake=500, data="shapes-1", split="val")
    (tmp_path / "prior").mkdir()
    write_scores(plan.scores_of(tmp_path, "prior", "val"), [Score(right, protocol)])
    told = quickstart.verdict(tmp_path, "prior")
    assert says in told and ("--minutes 30" in told) == (right < 0.3)


# ---- the whole, with tiny models -----------------------------------------------------------------------------------


class Tour(NamedTuple):
    run: Path
    out: str  # what it printed
    timings: dict[str, Any]


def tour(run: Path) -> Tour:
    printed = io.StringIO()
    with redirect_stdout(printed):
        assert app.main(["quickstart", "--family", "cgan", "--run-dir", str(run), "--minutes", "1"]) == 0
    return Tour(run, printed.getvalue(), json.loads((run / "timings.json").read_text()))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """Sets constants for models that train in no time, and a scorer that is none of theirs."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("scorer") / "scorer"
        sets = [word for value in (*TINY_ALIGN, "split=all", "seed=1") for word in ("--set", value)]
        assert app.main(["train", "align", *sets, "--run-dir", str(folder)]) == 0
        patch.setattr(aligned, "scorer_dir", lambda: folder)
        patch.setattr(quickstart, "speed_of", lambda run, command: 1.0)
        patch.setitem(plan.SETTINGS, "align", TINY_ALIGN)
        patch.setitem(plan.SETTINGS, "cgan", (*TINY_CGAN, "max_train_steps=2"))
        patch.setitem(plan.SETTINGS, "vqvae", TINY_VQVAE)
        patch.setitem(plan.SETTINGS, "prior", TINY_PRIOR)
        patch.setitem(plan.SETTINGS, "cvae", TINY_CVAE)
        patch.setattr(quickstart, "SHOWN", 3)
        patch.setattr(carrying, "NEIGHBOURS", 50)
        patch.setattr(gallery, "SHOWN", 3)
        patch.setattr(plan, "SCORED", 20)
        yield patch


@pytest.fixture(scope="module")
def first(tiny, tmp_path_factory: pytest.TempPathFactory) -> Tour:
    """Returns a folder with a name that needs quotes."""
    return tour(tmp_path_factory.mktemp("a b") / "it's [q]")


def test_one_command_trains_draws_scores_and_shows(first: Tour):
    run = first.run
    for name, step in (("align", 2), ("cgan", 2)):
        assert [record["step"] for record in read(run / name / "journal.jsonl")][-1] == step
    manifest = json.loads((run / "pictures-cgan" / "manifest.json").read_text())
    assert [entry["prompt"] for entry in manifest["pictures"]] == (run / "prompts.txt").read_text().splitlines()
    with Image.open(run / "pictures-cgan" / "grid.png") as sheet:
        assert min(sheet.size) > 2 * 128, "six pictures of at least 128 pixels and their labels"
    for split in ("val", "heldout"):
        protocol = read_scores(run / "cgan" / f"scores-shapes-1-{split}-20.json")[0].protocol
        assert (protocol.split, protocol.n_fake) == (split, 20)


def test_the_page_shows_what_was_made(first: Tour):
    page = (first.run / "index.html").read_text("utf-8")
    shown = re.findall(r'<article class="prompt"><h4[^>]*>(.*?)</h4>', page)
    held_out = [open_dataset(plan.DATA, split).captions for split in plan.SPLITS]
    assert [any(text in options for options in held_out[k // 3]) for k, text in enumerate(shown)] == [True] * 6
    for words in (
        *SPLITS.values(),
        "d_loss",
        "val_text_to_image_recall@1",
        "fid-shapes",
        "family: cgan",
        *NAMES,
    ):
        assert words in page
    assert page.count('alt="cgan, for: ') >= 2 * 3 and page.count('alt="real image of: ') == 2 * 3
    assert '<div class="warning"><p>' not in page, "held out, and the run tells so"


def test_every_command_is_printed_with_its_time_and_can_be_typed(first: Tour):
    lines = first.out.splitlines()
    assert list(first.timings) == NAMES and all(entry["status"] == 0 for entry in first.timings.values())
    for number, name in enumerate(NAMES, 1):
        heading = f"[{number}/5] {name}: "
        command, seconds = (line.removeprefix(heading) for line in lines if line.startswith(heading))
        assert first.timings[name]["command"] == command and seconds == f"{first.timings[name]['seconds']:.0f} s"
        assert shlex.split(command) == ["t2i", *plan.steps(first.run, PLAN, "cgan")[number - 1].argv]
    assert f"page      {first.run / 'index.html'}" in lines
    assert f"images    {first.run / 'pictures-cgan' / 'grid.png'}" in lines


def test_the_prompts_are_held_out_half_of_them_of_unseen_combinations(first: Tour):
    prompts = (first.run / "prompts.txt").read_text().splitlines()
    expected = [open_dataset(plan.DATA, split, View(limit=3)).captions for split in ("val", "heldout")]
    assert prompts == [options[0] for captions in expected for options in captions]


def test_the_same_command_again_does_only_what_is_missing(first: Tour, tiny, tmp_path):
    run = first.run
    (run / "index.html").unlink()
    printed = io.StringIO()
    with redirect_stdout(printed):
        quickstart.run_tour(run, 1.0, "cgan", lambda argv: pytest.fail(f"{argv} was run again"))
    lines = printed.getvalue().splitlines()[1:6]
    assert [f"[{k}/5] {name}: finished before" for k, name in enumerate(NAMES, 1)] == lines
    assert (run / "index.html").exists()
    (run / "cgan" / "scores-shapes-1-val-20.json").unlink()
    assert re.findall(r"\] (.*): finished before", tour(run).out) == [
        name for name in NAMES if name != "score of cgan on val"
    ]


def test_longer_training_goes_on_and_all_that_follows_is_made_anew(first: Tour, tiny):
    run = first.run
    before = {path: path.read_bytes() for path in [*run.glob("pictures-cgan/0*.png"), *run.glob("cgan/scores*.json")]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(plan.SETTINGS, "cgan", (*TINY_CGAN, "max_train_steps=4"))
        again = tour(run)
    assert re.findall(r"\] (.*): finished before", again.out) == ["text encoder"]
    steps = [record["step"] for record in read(run / "cgan" / "journal.jsonl") if "d_loss" in record]
    assert steps == [1, 2, 3, 4], "resumed, not begun again"
    assert again.timings["generator"]["seconds"] > first.timings["generator"]["seconds"]
    assert [path.name for path, data in before.items() if path.read_bytes() == data] == []
    assert len(list(run.glob("pictures-cgan/*.png"))) == 6 + 1


def test_the_other_families_go_beside_it_on_the_page(first: Tour, tiny):
    printed: dict[str, str] = {}
    for family in ("cvae", "prior"):
        with redirect_stdout(io.StringIO()) as said:
            assert app.main(["quickstart", "--family", family, "--run-dir", str(first.run), "--minutes", "1"]) == 0
        printed[family] = said.getvalue()
    assert "finished before" not in printed["cvae"], "a GAN has no tokenizer"
    assert re.findall(r"\] (.*): finished before", printed["prior"]) == ["tokenizer"]
    assert "--family prior" in printed["cvae"] and "--family cvae" in printed["prior"]
    page = (first.run / "index.html").read_text("utf-8")
    for family in quickstart.NAMES:
        assert (first.run / f"pictures-{family}" / "grid.png").exists()
        assert page.count(f'alt="{family}, for: ') >= 2 * 3
        assert f"Protocol of {family}: shapes-1 heldout" in page
    for words in SPLITS.values():
        assert words in page
    assert "reconstructions" in page and "<summary>vqvae</summary>" in page
    places = [page.index(f'alt="{family}, for: ') for family in ("prior", "cvae", "cgan")]
    assert places == sorted(places), "what was asked for comes first"


# ---- when a command does not go through ----------------------------------------------------------------------------


@pytest.fixture
def programs(monkeypatch) -> Callable[..., list[str]]:
    """Replaces the commands: each writes its result, and one of them ends with a status."""

    def fake(stops: dict[str, int] | None = None) -> list[str]:
        ran: list[str] = []

        def main(argv: list[str]) -> int:
            step = next(step for step in plan.steps(Path("q"), PLAN, "cgan") if step.argv == argv)
            ran.append(step.name)
            status = (stops or {}).get(step.name, 0)
            if status != 2:
                step.result.mkdir(parents=True, exist_ok=True)
            return status

        monkeypatch.setattr(app, "main", main)
        monkeypatch.setattr(quickstart, "speed_of", lambda run, command: 1.0)
        return ran

    return fake


def test_the_status_of_a_command_is_that_of_the_tour(programs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ran = programs({"generator": 85})
    with pytest.raises(SystemExit) as stopped:
        quickstart.run_tour(Path("q"), 1.0, "cgan", app.main)
    assert stopped.value.code == 85 and ran == NAMES[:2]
    assert capsys.readouterr().out.endswith("stopped with status 85; the same command continues from here\n")
    monkeypatch.setattr(quickstart, "show", lambda *_: None)
    resumed = programs()
    quickstart.run_tour(Path("q"), 1.0, "cgan", app.main)
    assert resumed == NAMES[1:], "what was finished is not run again, what stopped is"


def test_time_adds_up_where_a_training_was_resumed_and_nowhere_else(programs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clock = iter(range(0, 10_000, 7))
    monkeypatch.setattr(record.time, "monotonic", lambda: next(clock))
    for name, status, seconds in (
        ("generator", 2, 7),  # before it left anything
        ("generator", 85, 7),
        ("generator", 85, 14),
        ("images of cgan", 1, 7),
        ("images of cgan", 1, 7),
    ):
        programs({name: status})
        with pytest.raises(SystemExit):
            quickstart.run_tour(Path("q"), 1.0, "cgan", app.main)
        written = json.loads(Path("q/timings.json").read_text())
        assert written[name]["seconds"] == seconds
    assert written["generator"]["seconds"] == 21


def test_a_damaged_record_means_that_all_is_run(programs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quickstart, "show", lambda *_: None)
    for damage in ("{", "[]", '{"generator": 3, "pictures": {"status": 0}}'):
        shutil.rmtree("q", ignore_errors=True)
        Path("q").mkdir()
        Path("q/timings.json").write_text(damage)
        ran = programs()
        quickstart.run_tour(Path("q"), 1.0, "cgan", app.main)
        assert ran == NAMES


def test_a_folder_that_cannot_be_one_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            InputError, match=r"file.* cannot be created, as a file has that name; name another with --run-dir"
        ):
            quickstart.run_tour(place, 1.0, "cgan", app.main)


# ---- what it says --------------------------------------------------------------------------------------------------


def test_the_commands_to_try_next_are_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    called: list[str] = []
    fake = SimpleNamespace(main=lambda *a, **k: called.append("sample"))
    monkeypatch.setitem(sys.modules, "t2i.sample.images", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(program, "main", lambda options: called.append(f"fit {options.data} {options.minutes:g}"))
    monkeypatch.setattr(
        quickstart, "main", lambda options: called.append(f"{options.family} {options.run} {options.minutes:g}")
    )
    for line in "\n".join(quickstart.next_commands(Path("runs/my run"), "cgan").values()).splitlines():
        words = shlex.split(line)
        assert Path(words[0]).name == "t2i"
        assert app.main(words[1:]) == 0, line
    assert called == ["sample", "sample", "cgan runs/my run 30", "cvae runs/my run 4", "fit FOLDER 60"]


def test_the_command_can_be_typed_where_one_stands(tmp_path, monkeypatch):
    bin_dir = tmp_path / "a b" / "bin"
    bin_dir.mkdir(parents=True)
    (bin_dir / "t2i").write_text("#!/bin/sh\n")
    (bin_dir / "t2i").chmod(0o755)
    monkeypatch.setattr(carrying.sys, "executable", str(bin_dir / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    assert carrying.command_here() == "'a b/bin/t2i'"
    monkeypatch.chdir("/")
    monkeypatch.setenv("PATH", str(bin_dir))
    assert carrying.command_here() == "t2i"
    monkeypatch.setenv("PATH", "/nowhere")
    (bin_dir / "t2i").unlink()
    assert carrying.command_here() == "t2i"


def test_importing_it_imports_no_torch():
    code = "import sys, t2i.cli.quickstart; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
