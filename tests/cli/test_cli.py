"""The command line: exit status and one line for every mistake, without slow imports."""

import errno
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

from builders.commands import command_line
from builders.tiny_prior_run import save_random_tokenizer
from t2i import hardware
from t2i.cli import app, doctor, dry_run, quickstart, train
from t2i.cli.fit.probe import Measured
from t2i.config import load as config
from t2i.config.load import load, to_yaml
from t2i.errors import InputError
from t2i.families import FAMILIES, config_class
from t2i.sampling.options import SampleOptions

Fake = Callable[..., ModuleType]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs one command line in an empty folder; returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    return command_line(capsys)


@pytest.fixture
def fake_module(monkeypatch: pytest.MonkeyPatch):
    """Makes a module with the given attributes importable."""

    def put(name: str, **attributes: Any) -> ModuleType:
        module = types.ModuleType(name)
        for key, value in attributes.items():
            setattr(module, key, value)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return put


@pytest.fixture
def trained(fake_module: Fake, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Path]]:
    """Replaces the training programs by one that records its arguments and writes config.yaml, as every run does."""
    calls: list[tuple[Any, Path]] = []

    def main(resolved: Any, run_dir: Path) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").write_text(to_yaml(resolved))
        calls.append((resolved, run_dir))

    monkeypatch.setattr(train, "programs", lambda kind: list(FAMILIES))
    for family in FAMILIES:
        fake_module(f"t2i.train.{family}", main=main)
    return calls


def raising(error: BaseException) -> Callable[..., None]:
    def main(*args: Any, **kwargs: Any) -> None:
        raise error

    return main


# ---- the frame -----------------------------------------------------------------------------------------------------


def test_help_and_config_mistakes_import_no_torch():
    code = (
        "import sys; from t2i.cli import main\n"
        "status = [main(['--help']), main(['train', '--help']), main(['config', 'show', 'cgan', '--set', 'x=1'])]\n"
        "heavy = ('torch', 'torchvision', 'transformers', 'accelerate', 'numpy', 'sklearn', 'gensim', 'PIL')\n"
        "print(status, [name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[0, 0, 2] []"
    for command in ("train", "sample", "eval", "data", "config", "doctor", "quickstart"):
        assert command in done.stdout


def test_python_m_passes_the_exit_status_on():
    good = subprocess.run([sys.executable, "-m", "t2i.cli", "--version"], capture_output=True, text=True)
    assert (good.returncode, good.stdout.split()[0]) == (0, "t2i")
    bad = subprocess.run([sys.executable, "-m", "t2i.cli", "config", "show", "no"], capture_output=True, text=True)
    assert (
        bad.returncode == 2
        and bad.stderr.startswith("error: config 'no' is neither a file")
        and "Traceback" not in bad.stderr
    )


@pytest.mark.parametrize("argv", [["nonsense"], ["train"], ["train", "cgan", "--nope"], ["sample", "x", "-n", "0"]])
def test_wrong_usage_exits_with_2(run, argv):
    status, out, err = run(*argv)
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and "; see t2i" in err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("sample a_run x -n 0", "'-n': must be greater than or equal to 1; see t2i sample --help"),
        ("sample a_run x -n -1", "'-n': must be greater than or equal to 1; see t2i sample --help"),
        ("sample a_run x --best-of 0", "'--best-of': must be greater than or equal to 1; see t2i sample --help"),
        ("sample a_run x --guidance nan", "--guidance nan: must be a finite number"),
        ("sample a_run x --mask m.png", "--mask m.png needs an image; name it with --init"),
        (
            "eval score a_run --resize fine",
            "'fine' is not one of 'clean', 'legacy', 'torch'; see t2i eval score --help",
        ),
        ("eval sweep a_run --guidance 1,x", "--guidance 1,x: 'x' is not a number; write --guidance 1,1.5,2"),
        ("eval scor a_run", "no such command 'scor'. Did you mean 'score'?; see t2i eval --help"),
        ("quickstart --minutes 0", "must be greater than or equal to 0.1; see t2i quickstart --help"),
    ],
)
def test_a_value_out_of_range_is_one_line(run, argv, says):
    status, out, err = run(*argv.split())
    assert (status, out) == (2, "") and says in err and err.startswith("error: ") and err.count("\n") == 1, err


def test_options_made_in_python_are_checked_too():
    with pytest.raises(InputError, match="--best-of 0: must be greater than or equal to 1"):
        SampleOptions(best_of=0)
    with pytest.raises(InputError, match="--interpolate sideways: must be 'noise' or 'caption'"):
        SampleOptions(interpolate="sideways")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="SampleOptions has no option 'best'; options: guidance, "):
        SampleOptions(best=1)  # type: ignore[call-arg]


def test_every_flag_of_0_1_is_still_there():
    """Flags that users type: none may be removed or change its kind; new ones may be added."""
    known = json.loads((Path(__file__).parent / "flags.json").read_text())

    def flags(command: Any) -> dict[str, str]:
        options = [one for one in command.params if one.opts[0].startswith("-")]
        kinds = ["flag" if one.is_flag else "list" if one.multiple else "value" for one in options]
        return {name: kind for one, kind in zip(options, kinds, strict=True) for name in one.opts}

    for path, expected in known.items():
        command: Any = typer.main.get_command(app.app)
        for word in path.split():
            command = command.get_command(None, word)
        found = flags(command)
        assert {name: found.get(name) for name in expected} == expected, path


def test_a_mistake_is_printed_once_under_torchrun(run, monkeypatch, fake_module):
    """The other processes wait for torchrun to end them; a mistake of one process alone is printed after that."""
    slept: list[float] = []
    monkeypatch.setattr(app.time, "sleep", slept.append)
    fake_module("t2i.sample.images", main=raising(InputError("no run there")))
    monkeypatch.setenv("RANK", "0")
    assert run("sample", "somewhere") == (2, "", "error: no run there\n") and slept == []
    monkeypatch.setenv("RANK", "1")
    assert run("sample", "somewhere") == (2, "", "error: process 1: no run there\n") and slept == [app.PATIENCE_SECONDS]
    assert run("sample", "x", "-n", "0")[2].startswith("error: process 1: ") and len(slept) == 2


@pytest.mark.parametrize("program", ["t2i.train.cgan", "t2i.eval.score", "t2i.sample.images"])
def test_a_program_runs_as_a_module(program):
    done = subprocess.run([sys.executable, "-m", program, "--help"], capture_output=True, text=True)
    command = {"t2i.train.cgan": "t2i train", "t2i.eval.score": "t2i eval score", "t2i.sample.images": "t2i sample"}
    assert done.returncode == 0 and f"Usage: {command[program]} " in done.stdout


def test_the_package_is_found_beside_a_checkout_of_its_name(tmp_path):
    root = Path(app.__file__).resolve().parents[2]
    (tmp_path / "t2i").symlink_to(root)
    code = "import t2i, t2i.cli.app, t2i.train; print(t2i.__version__, t2i.cli.app.__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.split(maxsplit=1)[1].strip()).resolve() == Path(app.__file__).resolve()


def test_doctor_finds_a_folder_that_hides_the_package(tmp_path):
    code = "from t2i.cli.doctor import imports; found = imports(); print(found.ok, found.detail, found.fix)"
    for hidden, says in (
        ("u2i", "True t2i from "),
        ("t2i", f"False `import t2i` in {tmp_path} finds {tmp_path / 't2i'}"),
    ):
        (tmp_path / hidden).mkdir()
        done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=tmp_path)
        assert done.stdout.startswith(says), done.stderr
    assert "rename the folder t2i" in done.stdout


def test_the_pipeline_is_importable_from_the_top_without_torch_before():
    code = "import sys, t2i; print('torch' in sys.modules, t2i.TextToImagePipeline.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "t2i.pipeline"]


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (InputError("nothing at /a/b; name a run"), 2, "error: nothing at /a/b; name a run\n"),
        (KeyboardInterrupt(), 130, ""),
        (SystemExit(85), 85, ""),
        (SystemExit(), 0, ""),
        (SystemExit("told"), 1, "told\n"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full/file"),
            2,
            "error: /full/file: No space left on device; free some space or name another folder\n",
        ),
    ],
)
def test_how_a_program_ends_decides_the_exit_status(run, fake_module, error, status, says):
    fake_module("t2i.sample.images", main=raising(error))
    assert run("sample", "somewhere") == (status, "", says)


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), OSError(errno.EIO, "disk"), ValueError("a bug")])
def test_a_bug_is_not_hidden(run, fake_module, error):
    fake_module("t2i.sample.images", main=raising(error))
    with pytest.raises(type(error)):
        run("sample", "somewhere")


def test_threads_do_not_spin_unless_the_user_says_so(run, fake_module, monkeypatch):
    seen: list[str | None] = []
    fake_module("t2i.sample.images", main=lambda _: seen.append(os.environ.get("OMP_WAIT_POLICY")))
    monkeypatch.delenv("OMP_WAIT_POLICY")
    run("sample", "somewhere")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    run("sample", "somewhere")
    assert seen == ["passive", "active"]


# ---- train ---------------------------------------------------------------------------------------------------------


def test_programs_are_the_files_that_are_there(tmp_path, monkeypatch):
    for name in ("zebra.py", "ant.py", "_helper.py", "__init__.py", "notes.txt"):
        (tmp_path / name).write_text("raise SystemExit('imported')")
    spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(train, "find_spec", lambda name: spec if name == "t2i.train" else None)
    assert train.programs("train") == ["ant", "zebra"]
    with pytest.raises(
        InputError, match=r"t2i train 'zebar': no such program \(did you mean zebra\?\); there are: ant, zebra"
    ):
        train.program("train", "zebar")


def test_every_training_program_has_a_config_and_every_config_a_program():
    assert set(train.programs("train")) == set(FAMILIES)


def test_train_hands_the_resolved_config_and_the_run_directory_over(run, trained):
    assert run("train", "cgan", "--set", "learning_rate=1e-4", "--data", "folder:no: [such] #place")[0] == 0
    resolved, run_dir = trained[-1]
    assert (resolved.learning_rate, resolved.data.address) == (1e-4, "folder:no: [such] #place")
    assert run_dir == Path("runs/cgan-default")

    Path("mine.yaml").write_text("family: cgan\nseed: 5\n")
    assert run("train", "cgan", "-c", "mine.yaml")[0] == 0
    assert trained[-1][0].seed == 5 and trained[-1][1] == Path("runs/mine")
    assert run("train", "cgan", "-c", "mine.yaml", "--run-dir", "out/there")[0] == 0
    assert trained[-1][1] == Path("out/there")


@pytest.fixture
def steps_measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Replaces the few steps that a dry run of a new run times."""
    asked: list[tuple[Any, ...]] = []

    def measured(family: str, source: str, sets: list[str], command: Any) -> Measured:
        asked.append((family, load(config_class(family), source, sets)))
        return Measured(100.0, "generator 1,000", "CPU, 1 thread", 1_230_000_000)

    monkeypatch.setattr(dry_run, "measured", measured)
    return asked


def test_a_dry_run_prints_the_config_and_writes_nothing(run, trained, tmp_path, steps_measured):
    status, out, err = run("train", "cgan", "--set", "seed=3", "--set", "data.limit=100", "--dry-run")
    assert (status, err, trained, list(tmp_path.iterdir())) == (0, "", [], [])
    for line in (
        "# data        shapes-2: 100 images with ",
        "# text        aligned (the encoder of the shipped models)",
    ):
        assert line in out
    assert "# training    4,000 steps of 64 images per process: 256,000 images, 2,560.0 epochs" in out
    assert "# parameters  generator 1,000\n" in out and "# memory      1.2 GB at the peak of these steps\n" in out
    assert (
        "# time        about 43 minutes for the 4,000 steps left, at 100 images/s (measured: at most 16 steps " in out
    )
    ((family, timed),) = steps_measured
    assert (family, timed.seed, timed.data.limit) == ("cgan", 3, 100)
    Path("again.yaml").write_text(out)
    assert load(config_class("cgan"), "again.yaml", []) == load(
        config_class("cgan"), None, ["seed=3", "data.limit=100"]
    )


def test_a_dry_run_of_a_prior_estimates_its_memory_and_tries_no_steps_that_do_not_fit(
    run: Any, tmp_path: Path, steps_measured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_random_tokenizer(tmp_path / "tokenizer")
    command = (
        "train prior --set tokenizer.path=tokenizer --set data.resolution=16 --set text.encoder=bow --set data.limit=64"
    )
    status, out, _ = run(*command.split(), "--set", "mixed_precision=no", "--dry-run")
    assert status == 0 and len(steps_measured) == 1
    rows = [line.removeprefix("# ").strip() for line in out.splitlines() if "(weights " in line]
    assert [row.partition(":")[0] for row in rows] == [
        "1 x", "1 x, activation_checkpointing", "8 x", "8 x, sharded", "8 x, sharded, activation_checkpointing",
    ]  # fmt: skip
    totals = [float(row.partition(": ")[2].split()[0]) for row in rows]
    assert totals[1] < totals[0] < totals[2] and totals[4] < totals[3] < totals[2]
    count = int(out.partition("# sizes       ")[2].split()[0].replace(",", ""))
    assert f"1 x: {totals[0]:.3g} (weights {4 * count / 1e9:.3g}, gradients" in out

    monkeypatch.setattr(hardware, "free_memory", lambda: 1_000_000)
    status, out, _ = run(*command.split(), "--dry-run")
    assert status == 0 and len(steps_measured) == 1 and "0.001 GB are free" in out and "not measured" in out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("cgan --data nowhere", "data 'nowhere' not found"),
        ("cgan --set text.path=nowhere", "nowhere"),
        ("cgan --set text.encoder=clip --set text.path=./nowhere", "nowhere"),
        ("prior --set tokenizer.path=nowhere", "nowhere does not exist; train one: t2i train vqvae --run-dir nowhere"),
    ],
)
def test_a_dry_run_refuses_what_does_not_exist(run, trained, tmp_path, argv, says):
    status, out, err = run("train", *argv.split(), "--dry-run")
    assert (status, out, trained, list(tmp_path.iterdir())) == (2, "", [], [])
    assert says in err and err.startswith("error: ") and err.count("\n") == 1


def test_the_same_command_resumes_and_a_bare_one_uses_the_runs_own_config(run, trained):
    command = ["train", "cgan", "--set", "seed=3", "--set", "data.resolution=64", "--run-dir", "r"]
    assert run(*command)[0] == 0
    assert run(*command)[0] == 0
    assert run("train", "cgan", "--run-dir", "r")[0] == 0
    assert trained[0] == trained[1] == trained[2]


def test_a_resumed_run_may_be_longer_but_not_learn_something_else(run, trained):
    run("train", "cgan", "--set", "seed=3", "--run-dir", "r")
    assert (
        run("train", "cgan", "--run-dir", "r", "--set", "max_train_steps=9", "--set", "report_to=tensorboard")[0] == 0
    )
    assert (trained[-1][0].max_train_steps, trained[-1][0].seed) == (9, 3)

    status, _, err = run("train", "cgan", "--run-dir", "r", "--set", "seed=4", "--set", "data.resolution=64")
    assert status == 2 and len(trained) == 2
    assert err.startswith("error: r holds a run with another config; name a new folder with --run-dir, ")
    assert "seed: 3 in the run, 4 requested" in err and "data.resolution: 32 in the run, 64 requested" in err
    assert "max_train_steps" not in err


def test_a_named_config_is_compared_with_the_run(run, trained):
    Path("mine.yaml").write_text("seed: 5\n")
    run("train", "cgan", "-c", "mine.yaml", "--run-dir", "r")
    assert run("train", "cgan", "-c", "mine.yaml", "--run-dir", "r")[0] == 0
    Path("mine.yaml").write_text("seed: 6\n")
    status, _, err = run("train", "cgan", "-c", "mine.yaml", "--run-dir", "r")
    assert status == 2 and "seed: 5 in the run, 6 requested" in err


def test_a_run_of_another_family_or_a_file_is_refused(run, trained):
    run("train", "cgan", "--run-dir", "r")
    status, _, err = run("train", "align", "--run-dir", "r")
    assert status == 2 and err.startswith("error: family: must be align, got 'cgan' (r/config.yaml line ")
    Path("file").touch()
    status, _, err = run("train", "cgan", "--run-dir", "file")
    assert (status, err) == (2, "error: run directory file is a file; name a folder with --run-dir\n")


def test_config_mistakes_are_listed_before_anything_is_imported_or_written(run, trained, tmp_path):
    status, out, err = run("train", "cgan", "--set", "learnin_rate=1", "--set", "seed=x")
    assert (status, out, trained, list(tmp_path.iterdir())) == (2, "", [], [])
    assert err.startswith("error: 2 errors in the config:\n") and "did you mean learning_rate?" in err
    assert "did you mean learning_rate?" in run("train", "cgan", "--set", "lr=1")[2]
    assert "did you mean data.resolution?" in run("train", "cgan", "--set", "image_size=64")[2]


def test_an_unknown_program_names_the_nearest(run, trained):
    status, _, err = run("train", "cgna")
    assert status == 2 and "(did you mean cgan?)" in err


# ---- sample, eval, data, quickstart --------------------------------------------------------------------------------


@pytest.fixture
def noted(fake_module: Fake, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Records the arguments of the programs behind sample, eval and quickstart."""
    calls: dict[str, Any] = {}
    fake_module("t2i.sample.images", main=lambda options: calls.update(sample=options))
    fake_module("t2i.eval.score", main=lambda options: calls.update(score=options))
    fake_module("t2i.eval.sweep", main=lambda options: calls.update(sweep=options))
    monkeypatch.setattr(quickstart, "main", lambda options: calls.update(quickstart=options))
    return calls


def test_sample_passes_every_option_on(run, noted):
    argv = (
        "a_run one two -n 3 --seed 7 --prompts p.txt --guidance 2 --truncation 0.5 --batch-size 8 --out o --model cgan"
    )
    more = "--temperature 0.7 --top-k 100 --top-p 0.9 --steps 10 --compile --init i.png --mask m.png --best-of 8"
    assert run("sample", *argv.split(), *more.split(), "--scorer", "clip:c")[0] == 0
    found = noted["sample"]
    assert found.model_dump(exclude={"interpolate", "frames", "keep_rows", "edit", "interactive"}) == {
        "words": ("a_run", "one", "two"),
        "model": "cgan",
        "num_images_per_prompt": 3,
        "seed": 7,
        "prompts_file": Path("p.txt"),
        "guidance": 2.0,
        "truncation": 0.5,
        "temperature": 0.7,
        "top_k": 100,
        "top_p": 0.9,
        "steps": 10,
        "compile": True,
        "batch_size": 8,
        "out": Path("o"),
        "init": Path("i.png"),
        "mask": Path("m.png"),
        "best_of": 8,
        "scorer": "clip:c",
    }
    assert found.settings == {"temperature": 0.7, "top_k": 100, "top_p": 0.9, "steps": 10, "compile": True}
    assert run("sample", "a_run", "x", "y", "--interpolate", "caption", "--frames", "5")[0] == 0
    assert (noted["sample"].interpolate, noted["sample"].frames) == ("caption", 5)
    assert run("sample", "a_run", "--init", "i.png", "--keep-rows", "4")[0] == 0
    assert noted["sample"].keep_rows == 4
    assert run("sample", "a_run", "-i")[0] == 0
    assert noted["sample"].interactive
    assert run("sample", "a_run")[0] == 0
    assert noted["sample"] == SampleOptions(words=("a_run",)) and noted["sample"].settings == {}


def test_eval_score_passes_every_option_on(run, noted):
    argv = (
        "a_run --data shapes-2 --split heldout -n 9 --metrics a,,b --seed 3 --truncation 0.5 --guidance 2 --best-of 4"
    )
    more = "--reranker r --inception i.pt --clip c --scorer a --force --allow-leak --out o.json --protocol coco-30k"
    rest = (
        "--temperature 0.7 --top-k 100 --top-p 0.9 --steps 10 --resolution 64 --dinov2 d --resize torch --skip-broken"
    )
    assert (
        run(
            "eval",
            "score",
            *argv.split(),
            *more.split(),
            *rest.split(),
            "--save-features",
            "f",
            "--reader",
            "e",
            "--questions",
            "q",
        )[0]
        == 0
    )
    assert noted["score"].model_dump() == {
        "target": "a_run",
        "data": "shapes-2",
        "against": None,
        "prompts": None,
        "protocol": "coco-30k",
        "split": "heldout",
        "n": 9,
        "resolution": 64,
        "metrics": ("a", "b"),
        "seed": 3,
        "truncation": 0.5,
        "guidance": 2.0,
        "temperature": 0.7,
        "top_k": 100,
        "top_p": 0.9,
        "steps": 10,
        "best_of": 4,
        "reranker": "r",
        "inception": Path("i.pt"),
        "clip": Path("c"),
        "dinov2": Path("d"),
        "scorer": Path("a"),
        "resize": "torch",
        "force": True,
        "allow_leak": True,
        "skip_broken": True,
        "save_features": Path("f"),
        "out": Path("o.json"),
        "reader": Path("e"),
        "questions": Path("q"),
    }
    assert run("eval", "score", "a_run", "--against", "other", "--prompts", "p.tsv")[0] == 0
    assert (noted["score"].against, noted["score"].prompts) == ("other", Path("p.tsv"))


def test_eval_sweep_passes_every_option_on(run, noted):
    argv = "a_run --guidance 1,2 --truncation 1 --temperature .7 --top-k 5,all --top-p .9 --steps 4 --data shapes-2"
    more = "--split train -n 9 --seed 3 --inception i.pt --scorer a --force --out o.json --make-default"
    assert run("eval", "sweep", *argv.split(), *more.split())[0] == 0
    assert noted["sweep"].model_dump() == {
        "run": "a_run",
        "guidance": (1.0, 2.0),
        "truncation": (1.0,),
        "temperature": (0.7,),
        "top_k": (5, None),
        "top_p": (0.9,),
        "steps": (4,),
        "data": "shapes-2",
        "split": "train",
        "n": 9,
        "seed": 3,
        "inception": Path("i.pt"),
        "scorer": Path("a"),
        "force": True,
        "out": Path("o.json"),
        "make_default": True,
    }
    assert run("eval", "sweep", "a_run", "--guidance", "1")[0] == 0
    assert (noted["sweep"].split, noted["sweep"].n) == ("val", 500)


def test_quickstart_passes_its_options_on(run, noted):
    assert run("quickstart", "--run-dir", "q", "--minutes", "1.5", "--family", "prior")[0] == 0
    assert noted["quickstart"] == quickstart.QuickstartOptions(run=Path("q"), minutes=1.5, family="prior")


def test_exported_data_passes_the_check(run):
    status, out, _ = run("data", "export", "shapes-1", "one", "--n", "3", "--size", "32")
    assert status == 0 and out == "wrote 3 train images to one\n"
    assert len(list(Path("one").glob("*.png"))) == 3
    status, out, _ = run("data", "export", "shapes-1", "two", "-n", "2", "--size", "32", "--split", "train,val")
    assert status == 0 and {path.parent.name for path in Path("two").rglob("*.png")} == {"train", "val"}
    status, out, _ = run("data", "check", "two")
    assert status == 0 and "train 2" in out and "val 2" in out
    Path("bare").mkdir()
    for argv, says in (
        (("data", "export", "shapes-1", "none", "--split", " ,"), "names nothing"),
        (("data", "check", "one", "--sheet", "no/sheet.png"), "there is no folder no"),
        (("data", "check", "x" * 10_000), "is too long for the name of a file or folder"),
        (("eval", "tokenizer", "nowhere"), "nowhere does not exist; train one"),
        (("eval", "tokenizer", "cvae"), "cvae ships with t2i and holds no scores; name a JSON file with --out"),
        (("eval", "tokenizer", "bare", "--lpips", "vgg.pth"), "--lpips vgg.pth not found; download torchvision's"),
        (("eval", "tokenizer", "bare", "--questions", "q.csv"), "--questions q.csv has no effect without a reader"),
        (("eval", "score", "bare"), "bare holds no images and is not a run"),
        (("eval", "score", "x" * 10_000), "is too long for the name of a file or folder"),
    ):
        status, out, err = run(*argv)
        assert (status, out) == (2, "") and says in err and err.count("\n") == 1, err
    assert not Path("none").exists()
    status, _, err = run("data", "export", "shapes-1", "one")
    assert status == 2 and err.startswith("error: output folder ") and err.count("\n") == 1
    status, _, err = run("data", "check", "nowhere")
    assert status == 2 and "nowhere" in err and err.count("\n") == 1


# ---- config --------------------------------------------------------------------------------------------------------


def test_config_show_resolves_names_files_runs_and_families(run, tmp_path):
    (tmp_path / "config.yaml").write_text("family: cgan\nseed: 5\n")
    for name in (str(tmp_path), "config.yaml"):
        status, out, _ = run("config", "show", name, "--set", "data.resolution=64")
        assert status == 0 and yaml.safe_load(out)["seed"] == 5 and yaml.safe_load(out)["data"]["resolution"] == 64
    assert run("config", "show", "align")[1] == to_yaml(load(config_class("align"), None, []))


def test_config_schema_and_list(run):
    assert "learning_rate" in json.loads(run("config", "schema", "cgan")[1])["properties"]
    assert run("config", "list")[1].split() == config.shipped()
    status, _, err = run("config", "schema", "cgna")
    assert status == 2 and "did you mean cgan?" in err


def test_config_diff_names_what_differs(run):
    Path("a.yaml").write_text("family: cgan\nseed: 5\n")
    assert run("config", "diff", "cgan", "a.yaml") == (0, "seed: 0 -> 5\n", "")
    assert run("config", "diff", "cgan", "cgan") == (0, "", "")


# ---- doctor --------------------------------------------------------------------------------------------------------


def test_doctor_exits_with_1_and_says_the_fix(run, monkeypatch):
    well = doctor.Finding("disk", True, "9 GiB")
    ill = doctor.Finding("device", False, "no GPU", "update the driver")
    monkeypatch.setattr(doctor, "CHECKS", (lambda: well,))
    assert run("doctor") == (0, "ok      disk         9 GiB\n", "")
    monkeypatch.setattr(doctor, "CHECKS", (lambda: well, lambda: ill))
    status, out, _ = run("doctor")
    assert status == 1 and out.splitlines()[1:] == ["PROBLEM device       no GPU", "        fix: update the driver"]


def test_a_check_that_breaks_is_a_finding(monkeypatch):
    def device() -> doctor.Finding:
        raise ImportError("libcudart.so.13: cannot open\nshared object file")

    monkeypatch.setattr(doctor, "CHECKS", (device,))
    (finding,) = doctor.examine()
    assert (finding.name, finding.ok) == ("device", False)
    assert finding.detail == "ImportError: libcudart.so.13: cannot open shared object file" and finding.fix


def test_doctor_finds_missing_and_old_packages(monkeypatch):
    versions = {"torch": "2.10.1+cpu", "torchvision": "0.26.0", "transformers": "5.0.0", "accelerate": "1.13.0"}
    required = [
        "torch>=2.11",
        "torchvision>=0.26",
        "transformers<6,>=5.0",
        "accelerate>=1.13",
        'ruff>=9; extra == "test"',
    ]

    def version(name: str) -> str:
        if name not in versions:
            raise doctor.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(doctor.metadata, "requires", lambda name: required)
    monkeypatch.setattr(doctor.metadata, "version", version)
    assert not doctor.packages().ok and doctor.packages().detail == "torch 2.10.1+cpu is not >=2.11"
    versions["torch"] = "2.11.0+cu130"
    assert doctor.packages().ok and "torch 2.11.0+cu130" in doctor.packages().detail
    del versions["accelerate"]
    assert doctor.packages().detail == "accelerate is missing" and doctor.packages().fix


def test_doctor_tells_a_mismatched_torchvision(monkeypatch):
    """`pip install torch torchvision` from two indices gives this: the compiled operators cannot be loaded."""
    assert doctor.operators().ok
    import torch

    def refuse(path: str) -> None:
        assert Path(path).name.startswith("_C"), "the library of the operators, and not all of torchvision"
        raise OSError("cannot load libtorch_cuda.so")

    monkeypatch.setattr(torch.ops, "load_library", refuse)
    finding = doctor.operators()
    assert not finding.ok and "cannot load" in finding.detail and "reinstall both" in finding.fix


def test_doctor_tells_a_gpu_that_torch_does_not_see(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "torch is a CPU build" in doctor.device().detail and "reinstall" in doctor.device().fix
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert not doctor.device().ok and "update the driver" in doctor.device().fix


def test_doctor_reads_bf16_from_the_cpus_flags(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags\t: fpu avx512_bf16 amx_bf16 amx_tile\n")
    assert doctor._cpu_bf16(cpuinfo) == "bf16 by avx512_bf16 and amx_bf16"
    cpuinfo.write_text("flags\t: fpu avx512f\n")
    assert doctor._cpu_bf16(cpuinfo) == doctor._cpu_bf16(tmp_path / "none") == "no bf16 instructions"


def test_doctor_watches_disk_memory_folders_and_threads(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("T2I_CACHE", str(tmp_path / "not" / "yet"))
    assert doctor.disk().ok and doctor.writable().ok and doctor.memory().ok and doctor.threads().ok
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=doctor.GIB))
    assert not doctor.disk().ok and "here 1.0 GiB free" in doctor.disk().detail
    monkeypatch.setattr(doctor, "MIN_MEMORY_GIB", 1e6)
    assert not doctor.memory().ok
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert not doctor.threads().ok

    def refuse(dir: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    assert not doctor.writable().ok and str(tmp_path) in doctor.writable().detail
