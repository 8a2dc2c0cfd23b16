"""The training programs through the command line, on one and on two processes."""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from builders.small_settings import ALIGN, GAN, SMALL, VQVAE
from t2i import checkpoint
from t2i.cgan import rules
from t2i.cli import app
from t2i.config.load import flat, load, shipped
from t2i.data import View, open_dataset
from t2i.data.record import read_record
from t2i.families import FAMILIES, config_class
from t2i.images import grid
from t2i.pipeline import TextToImagePipeline
from t2i.prior.transformer import Prior
from t2i.text import load_encoder
from t2i.training import journal

ROOT = Path(__file__).resolve().parents[2]
PRIOR = [
    *("model={width: 16, depth: 2, heads: 2, mlp_width: 16}", "text={encoder: bow}", "order=random", "flip=true"),
    *("validation_steps=2", "sampling.steps=3"),
]
CVAE = [
    "model={width: 16, depth: 2, heads: 2, posterior_width: 8}",
    "critic={start: 0.2, depth: 1}",  # it plays before and after a run of five steps is stopped
    "text={encoder: bow}",
    "flip=true",
    "validation_steps=2",
]
READER = [
    "image={encoder: own, width: 8, width_limit: 16, grid: 4}",
    "width=32",
    "decoder={depth: 1, heads: 2}",
    "fusion={depth: 1, heads: 2}",
    "text={depth: 1}",
    "validation_n=8",
]
KEYS = {
    "cgan": [*SMALL, *GAN], "align": [*SMALL, *ALIGN], "vqvae": [*SMALL, *VQVAE], "prior": [*SMALL, *PRIOR],
    "cvae": [*SMALL, *CVAE], "reader": [*SMALL, *READER],
}  # fmt: skip


@pytest.fixture(autouse=True)
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Writes the tokenizer that a prior or a cvae needs, once for all tests."""
    if not TOKENIZER:
        TOKENIZER.append(tmp_path_factory.mktemp("tokenizer") / "run")
        assert app.main(command("vqvae", TOKENIZER[0], "max_train_steps=3")) == 0


TOKENIZER: list[Path] = []


def command(family: str, run: Path, *sets: str) -> list[str]:
    if family in ("prior", "cvae"):
        sets = (f"tokenizer.path={json.dumps(str(TOKENIZER[0]))}", *sets)
    source = {"reader": "reader-both"}.get(family, f"{family}-tiny")
    words = ["train", family, "--config", source, "--data", "shapes-1", "--run-dir", str(run)]
    return words + [word for value in (*KEYS[family], *sets) for word in ("--set", value)]


def digests(run: Path) -> dict[str, str]:
    newest = checkpoint.latest(run / "checkpoints")
    assert newest is not None
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(newest.glob("*.safetensors"))}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_run_stopped_and_resumed_is_the_undisturbed_run_bit_for_bit(family: str, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert app.main(command(family, whole, "max_train_steps=5", "checkpointing_steps=5")) == 0
    # stopped where no schedule can tell: a signal ends a run at step 2 and the same command goes on
    code = (
        "import os, signal, sys; from t2i import cli; from t2i.training import run; old = run.Run._finish_step\n"
        "def finish(self):\n old(self); self.step == 2 and os.kill(os.getpid(), signal.SIGTERM)\n"
        "run.Run._finish_step = finish; sys.exit(cli.main(sys.argv[1:]))"
    )
    words = command(family, parts, "max_train_steps=5", "checkpointing_steps=5")
    stopped = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=240)
    assert stopped.returncode == 85, stopped.stderr
    assert len(digests(parts)) >= 2 and [p.name for p in (parts / "checkpoints").iterdir()] == ["step-00000002"]
    assert app.main(words) == 0
    assert digests(parts) == digests(whole)
    steps = [record["step"] for record in journal.read(parts / "journal.jsonl") if "learning_rate" in record]
    assert steps == [1, 2, 3, 4, 5]


def test_training_leaves_the_text_encoder_alone_and_moves_both_players(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert app.main(command("cgan", run, "max_train_steps=1")) == 0
    before = load_encoder(run / "text").digest()
    first = checkpoint.latest(run / "checkpoints")
    assert app.main(command("cgan", run, "max_train_steps=4")) == 0
    newest = checkpoint.latest(run / "checkpoints")
    assert first is not None and newest is not None and newest.name == "step-00000004"
    state, manifest = checkpoint.load(newest)
    assert load_encoder(run / "text").digest() == before == manifest["text_digest"]
    assert {"generator", "discriminator", "ema", "generator_optimizer", "discriminator_optimizer"} == set(state)
    old = load_file(first / "generator.safetensors")
    assert all(not torch.equal(old[k], v) for k, v in state["generator"].items() if k.startswith("stages.1"))
    record = next(r for r in reversed(journal.read(run / "journal.jsonl")) if "d_loss" in r)
    for key in ("d_loss", "g_loss", "d_real", "d_fake", "d_mismatched", "r1", "r2", "d_gradient", "g_gradient"):
        assert isinstance(record[key], float), key
    assert record["images_per_second"] > 0 and 0 <= record["data_wait"] <= 1


def test_the_run_is_guided_by_its_encoder_and_validated_on_held_out_prompts(tmp_path: Path) -> None:
    align, run = tmp_path / "align", tmp_path / "run"
    assert app.main(command("align", align, "max_train_steps=2", "validation_steps=2")) == 0
    found = {key for record in journal.read(align / "journal.jsonl") for key in record}
    assert {
        f"{s}_{w}_recall@{k}"
        for s in ("val", "heldout")
        for w in ("text_to_image", "image_to_text")
        for k in (1, 5, 10)
    } <= found
    guided = [
        f"text={{encoder: aligned, path: {json.dumps(str(align))}}}",
        "guidance.encoder=text",
        "validation_steps=2",
    ]
    words = ["generator.cross_attention=true", "max_train_steps=2"]
    assert app.main(command("cgan", run, *guided, *words)) == 0
    records = journal.read(run / "journal.jsonl")
    assert any("guidance" in r for r in records)
    validation = next(r for r in records if "diversity" in r)
    assert {"val_strict", "val_colour", "val_layout"} <= set(validation) and validation["diversity"] > 0
    assert (run / "samples" / "step-00000002.png").stat().st_size > 1000
    manifest = checkpoint.load(checkpoint.latest(run / "checkpoints"))[1]  # type: ignore[arg-type]
    assert manifest["guide_digest"] == load_encoder(run / "text").dual.digest()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("family", "sets"),
    [(family, ()) for family in FAMILIES]
    # a gradient of a gradient, taken through the wrapper that adds up what the processes found
    + [("cgan", ("loss.kind=hinge",)), ("cgan", ("loss.penalty=autograd",))],
)
def test_two_processes_train_one_run(family: str, sets: tuple[str, ...], tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    run = tmp_path / "run"
    words = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port, "-m", "t2i.cli"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    extra = ("max_train_steps=3", "gradient_accumulation_steps=2")
    done = subprocess.run(
        [sys.executable, *words, *command(family, run, *extra, *sets)],
        capture_output=True,
        text=True,
        timeout=400,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    state, manifest = checkpoint.load(checkpoint.latest(run / "checkpoints"))  # type: ignore[arg-type]
    per_process = 16 if family == "align" else 4
    assert manifest["images_seen"] == 3 * 2 * 2 * per_process and manifest["num_processes"] == 2
    assert len(journal.read(run / "journal.jsonl")) >= 3


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_config_is_valid_and_says_how_to_run_it(name: str, capsys) -> None:
    text = (ROOT / "configs" / f"{name}.yaml").read_text()
    assert text.startswith("# ") and "# command:  t2i train" in text
    family = name.split("-")[0]
    load(config_class(family), name, ())
    assert app.main(["config", "show", name]) == 0
    assert f"family: {family}" in capsys.readouterr().out


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_key_of_a_config_is_read(family: str) -> None:
    files = [p for place in ("t2i", "train") for p in (ROOT / place).rglob("*.py") if not p.name.endswith("config.py")]
    source = "\n".join(p.read_text() for p in files)
    config_source = (
        "\n".join(p.read_text() for p in (ROOT / "t2i").rglob("*config.py"))
        + (ROOT / "t2i/data/__init__.py").read_text()
    )
    read_in_config = {"fit", "split_seed", "layout"}  # read by methods of the config itself
    for key in flat(config_class(family)()):
        leaf = key.split(".")[-1]
        assert f".{leaf}" in source or (leaf in read_in_config and f"self.{leaf}" in config_source), key


def test_a_prior_draws_what_it_drew_in_training_and_keeps_its_codes(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("T2I_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    assert app.main(command("prior", run, "max_train_steps=2", "checkpointing_steps=1")) == 0
    said = capsys.readouterr().err
    assert "codes of train: 0 images from the cache, 64 encoded now" in said
    record = next(r for r in journal.read(run / "journal.jsonl") if "val_bits_per_token" in r)
    assert 3.5 < record["val_bits_per_token"] < 4.5 and "val_strict" in record  # 16 codes: 4 bits
    # the checkpoint alone draws the sheet that training drew, to the pixel
    prompts = [options[0] for options in open_dataset("shapes-1", "val", View(16, limit=24)).captions]
    again = TextToImagePipeline.from_pretrained(run)(prompts, seed=list(range(24)), output_type="uint8").images
    sheet = Image.open(run / "samples" / "step-00000002.png").convert("RGB")
    assert np.array_equal(np.asarray(grid(list(again), prompts, columns=6).convert("RGB")), np.asarray(sheet))
    assert len({image.tobytes() for image in again}) > 12  # so it is no accident
    assert app.main(command("prior", run, "max_train_steps=3")) == 0
    assert "64 images from the cache, 0 encoded now" in capsys.readouterr().err
    # another tokenizer, by one step of training: none of its codes is known
    assert app.main(command("vqvae", tmp_path / "other", "max_train_steps=4")) == 0
    other = f"tokenizer.path={json.dumps(str(tmp_path / 'other'))}"
    assert app.main(command("prior", tmp_path / "run2", "max_train_steps=1", other)) == 0
    assert "codes of train: 0 images from the cache, 64 encoded now" in capsys.readouterr().err


def test_a_prior_stops_when_held_out_likelihood_no_longer_falls(tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    sets = ("data.limit=4", "learning_rate=0.05", "lr_warmup_steps=0", "max_train_steps=200", "patience=2")
    assert app.main(command("prior", run, *sets, "validation_steps=5", "loss.token_dropout=0")) == 0
    assert "validations; stopping" in capsys.readouterr().err
    state, manifest = checkpoint.load(checkpoint.latest(run / "checkpoints"))  # type: ignore[arg-type]
    assert manifest["step"] < 200
    found = [r["val_bits_per_token"] for r in journal.read(run / "journal.jsonl") if "val_bits_per_token" in r]
    assert float(state["patience"]["cost"]) == pytest.approx(min(found), rel=1e-5)
    assert any(not torch.equal(state["best"][k], v) for k, v in state["ema"].items())


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["tokenizer.path=nowhere"], "t2i train vqvae"),
        (["data.resolution=32"], "codes images of 16 px"),
        (["data.augment=[noise]"], "codes are computed once"),
    ],
)
def test_a_prior_without_its_tokenizer_is_told_so(sets: list[str], words: str, tmp_path: Path, capsys) -> None:
    assert app.main(command("prior", tmp_path / "run", "max_train_steps=1", *sets)) == 2
    shown = capsys.readouterr().err
    assert words in shown and "Traceback" not in shown and not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["text={encoder: aligned, path: nowhere}"], "t2i train align"),
        (["text={encoder: bow, path: null}", "guidance.encoder=text"], "no image tower"),
        (["device=cuda"], "device=cuda was requested"),
        (["data.resolution=24"], "power of two"),
        (["data.adress=shapes-2"], "address"),
        (["max_train_steps=many", "learning_rate=-1"], "learning_rate"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_left(sets: list[str], words: str, tmp_path: Path, capsys) -> None:
    if "device=cuda" in sets and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    run = tmp_path / "run"
    assert app.main(command("cgan", run, "max_train_steps=1", *sets)) == 2
    shown = capsys.readouterr().err
    assert "error:" in shown and words in shown and "Traceback" not in shown
    assert not run.exists()


def test_what_stood_in_the_folder_stays_and_the_corrected_command_goes_through(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    missing = f"text={{encoder: aligned, path: {json.dumps(str(tmp_path / 'no'))}}}"
    assert app.main(command("cgan", run, "max_train_steps=1", missing)) == 2
    assert [p.name for p in run.iterdir()] == ["notes.txt"]
    assert app.main(command("cgan", run, "max_train_steps=1")) == 0
    kept = {p.name for p in run.iterdir()}
    assert app.main([*command("cgan", run, "max_train_steps=2"), "--set", "validation_extractor=inception:no"]) == 2
    assert {p.name for p in run.iterdir()} == kept and (run / "notes.txt").read_text() == "mine"


# ---- what decides a run ---------------------------------------------------------------------------------------------


def own_folder(root: Path, count: int = 40) -> Path:
    root.mkdir()
    colors = np.random.default_rng(1).integers(0, 255, (count, 3), np.uint8)
    rows = []
    for i, color in enumerate(colors):
        Image.fromarray(np.broadcast_to(color, (16, 16, 3)).copy()).save(root / f"{i:03d}.png")
        rows.append(json.dumps({"file_name": f"{i:03d}.png", "text": f"a thing of kind {i % 7}"}))
    (root / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return root


def refused(words: list[str], capsys) -> str:
    capsys.readouterr()
    assert app.main(words) == 2
    shown = capsys.readouterr().err
    assert "error:" in shown and "Traceback" not in shown
    return shown


def test_a_changed_encoder_or_tokenizer_is_refused_on_resume_and_left_as_it_is(tmp_path: Path, capsys) -> None:
    gan, prior = tmp_path / "gan", tmp_path / "prior"
    assert app.main(command("cgan", gan, "max_train_steps=1")) == 0
    encoder = gan / "text" / "encoder.json"
    whole = encoder.read_text()
    encoder.write_text(whole.replace('"a"', '"an"', 1).replace("circle", "circel", 1))
    assert encoder.read_text() != whole
    changed = encoder.read_bytes()
    assert "the text encoder in" in refused(command("cgan", gan, "max_train_steps=2"), capsys)
    assert encoder.read_bytes() == changed
    encoder.write_text(whole)
    assert app.main(command("cgan", gan, "max_train_steps=2")) == 0

    assert app.main(command("prior", prior, "max_train_steps=1")) == 0
    weights = prior / "tokenizer" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-2] ^= 1
    weights.write_bytes(data)
    assert "the tokenizer in" in refused(command("prior", prior, "max_train_steps=2"), capsys)
    assert weights.read_bytes() == data
    # the folder alone is made again from where it came from
    for path in (prior / "tokenizer").iterdir():
        path.unlink()
    (prior / "tokenizer").rmdir()
    assert app.main(command("prior", prior, "max_train_steps=2")) == 0


def test_an_aligner_keeps_its_vocabulary_when_its_data_has_changed(tmp_path: Path, capsys) -> None:
    data, run = own_folder(tmp_path / "data"), tmp_path / "run"
    words = [*command("align", run, "max_train_steps=1"), "--data", str(data)]
    assert app.main(words) == 0
    kept = (run / "tokenizer.json").read_bytes()
    metadata = data / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("thing", "zebra crossing"))
    longer = [*command("align", run, "max_train_steps=2"), "--data", str(data)]
    assert "other captions" in refused(longer, capsys) and (run / "tokenizer.json").read_bytes() == kept
    metadata.write_text(metadata.read_text().replace("zebra crossing", "thing"))
    (run / "tokenizer.json").write_bytes(kept.replace(b"thing", b"thong"))
    if b"thing" in kept:
        assert "the vocabulary in" in refused(longer, capsys)
    (run / "tokenizer.json").unlink()
    assert app.main(longer) == 0 and (run / "tokenizer.json").read_bytes() == kept


def test_a_path_may_be_spelled_otherwise_while_its_contents_are_the_same(tmp_path: Path, capsys, monkeypatch) -> None:
    data, run = own_folder(tmp_path / "data"), tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    spellings = ["data", "./data", "data/", str(data), f"folder:{data}"]
    for step, spelling in enumerate(spellings, 1):
        assert app.main([*command("cgan", run, f"max_train_steps={step}"), "--data", spelling]) == 0, spelling
    data.rename(tmp_path / "moved")
    assert app.main([*command("cgan", run, "max_train_steps=6"), "--data", "moved"]) == 0
    other = own_folder(tmp_path / "other", 20)
    assert "images, now" in refused([*command("cgan", run, "max_train_steps=7"), "--data", str(other)], capsys)
    moved = tmp_path / "tokenizer"
    assert app.main(command("vqvae", moved, "max_train_steps=2")) == 0
    run = tmp_path / "prior"
    named = "tokenizer.path={}"
    assert app.main(command("prior", run, "max_train_steps=1", named.format(moved))) == 0
    moved.rename(tmp_path / "there")
    assert app.main(command("prior", run, "max_train_steps=2", named.format(tmp_path / "there"))) == 0
    said = refused(command("prior", run, "max_train_steps=3", named.format(TOKENIZER[0])), capsys)
    assert "the tokenizer is not the one that run" in said


# what each program starts from, and a part of it that is not trained on
STARTS = {
    "cgan": "discriminator.stem", "align": "model.image", "vqvae": "model.encoder", "prior": "model.blocks.0",
    "cvae": "model.generator.blocks", "reader": "model.tower",
}  # fmt: skip


@pytest.mark.parametrize("family", list(STARTS))
def test_a_run_from_weights_resumes_bit_for_bit_without_them_and_keeps_what_is_frozen(
    family: str, tmp_path: Path
) -> None:
    first, whole, parts = (tmp_path / name for name in ("first", "whole", "parts"))
    assert app.main(command(family, first, "max_train_steps=2")) == 0
    (old := tmp_path / "old").mkdir()
    data = open_dataset("shapes-2", "train", View(16, limit=40))
    for image, options, name in zip(data.images(range(40)), data.captions, range(40), strict=True):
        Image.fromarray(image).save(old / f"{name}.png")
        (old / f"{name}.txt").write_text(options[0])
    replay = f"replay={{address: {json.dumps(str(old))}, share: 0.3}}"
    sets = [f"init_from={json.dumps(str(first))}", f"freeze=[{STARTS[family]}]", *[replay] * (family != "reader")]
    assert app.main(command(family, whole, *sets, "max_train_steps=4", "checkpointing_steps=2")) == 0
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "step-00000004")
    first.rename(tmp_path / "moved")  # a resumed run asks for nothing
    assert app.main(command(family, parts, *sets, "max_train_steps=4", "checkpointing_steps=2")) == 0
    assert digests(parts) == digests(whole)
    start, _ = checkpoint.load(checkpoint.latest(tmp_path / "moved" / "checkpoints"))  # type: ignore[arg-type]
    end, manifest = checkpoint.load(checkpoint.latest(whole / "checkpoints"))  # type: ignore[arg-type]
    part, _, name = STARTS[family].partition(".")
    given = start.get("best", start.get("ema", start[part])) if part in ("model", "generator") else start[part]
    kept = {key for key in end[part] if f"{key}.".startswith(f"{name}.")}
    trained = [key for key, tensor in end[part].items() if key not in kept and not torch.equal(tensor, given[key])]
    assert kept and trained and all(torch.equal(end[part][key], given[key]) for key in kept)
    assert manifest["init"]["from"] == str(first)
    record = read_record(whole / "trained_on.safetensors")
    assert record is not None and {entry["address"] for entry in record.data} == {
        "shapes-1",
        *[f"folder:{old}"] * (family != "reader"),
    }
    if FAMILIES[family].sampler:
        TextToImagePipeline.from_pretrained(whole).save_pretrained(tmp_path / "saved", prompts=["a small red circle"])
        card = (tmp_path / "saved" / "README.md").read_text()
        assert (
            "Training started from the weights of `first`, trained on `shapes-1`." in card and str(tmp_path) not in card
        )


def test_a_low_rank_run_resumes_bit_for_bit_and_keeps_the_frozen_weights(tmp_path: Path) -> None:
    first, whole, parts = (tmp_path / name for name in ("first", "whole", "parts"))
    assert app.main(command("prior", first, "max_train_steps=2")) == 0
    sets = [f"init_from={json.dumps(str(first))}", "lora.rank=2"]
    assert app.main(command("prior", whole, *sets, "max_train_steps=4", "checkpointing_steps=2")) == 0
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "step-00000004")
    assert app.main(command("prior", parts, *sets, "max_train_steps=4", "checkpointing_steps=2")) == 0
    assert digests(parts) == digests(whole)
    start, _ = checkpoint.load(checkpoint.latest(first / "checkpoints"))  # type: ignore[arg-type]
    end, _ = checkpoint.load(checkpoint.latest(whole / "checkpoints"))  # type: ignore[arg-type]
    given = start.get("best", start["ema"])
    weight = "blocks.0.qkv.parametrizations.weight"
    assert torch.equal(end["model"][f"{weight}.original"], given["blocks.0.qkv.weight"])
    assert end["model"][f"{weight}.0.up"].abs().sum() > 0
    assert end["ema"].keys() == given.keys() and not torch.equal(
        end["ema"]["blocks.0.qkv.weight"], given["blocks.0.qkv.weight"]
    )
    assert torch.equal(end["ema"]["code"], given["code"])


def test_the_shipped_prior_is_adapted_to_an_own_folder_with_its_own_tokenizer_and_encoder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = own_folder(tmp_path / "data", 12)
    sets = [
        "init_from=prior",
        "tokenizer.path=prior",
        "text.path=prior",
        "lora.rank=2",
        "max_train_steps=1",
        "device=cpu",
    ]
    sets += ["data.resolution=64", "data.limit=null", "validation_n=2", "train_batch_size=4", "mixed_precision=no"]
    words = ["train", "prior", "--config", "prior-shapes64", "--data", str(data), "--run-dir", str(tmp_path / "run")]
    assert app.main([*words, *(word for value in sets for word in ("--set", value))]) == 0
    printed = capfd.readouterr().err
    assert re.search(r"model +51 +0 +0 +0\n", printed), printed
    record = read_record(tmp_path / "run" / "trained_on.safetensors")
    assert record is not None and "shapes-3" in {entry["address"] for entry in record.data}


def test_a_start_that_does_not_fit_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    assert app.main(command("align", other, "max_train_steps=1")) == 0
    for sets, words in (
        ([f"init_from={json.dumps(str(other))}"], "holds a model of the family align, but this run trains cgan"),
        (["init_from=runs/none"], "no folder 'runs/none' here, and none from the hub"),
        (["freeze=[generator.text]"], "freeze generator.text would freeze random weights; set init_from too"),
        (["init_from=cgan", "freeze=[generator.sky]"], "no part 'generator.sky'"),
        (["replay={address: nowhere}"], "data 'nowhere' not found"),
        (["replay={address: shapes-2, share: 1.5}"], "replay.share"),
        (["data.unlabelled=nowhere"], "data 'nowhere' not found"),
    ):
        capfd.readouterr()
        assert app.main(command("cgan", run, *sets, "max_train_steps=1")) == 2
        said = capfd.readouterr().err
        assert words in " ".join(said.split()), said
        assert not run.exists(), "a start that is refused leaves nothing"


def test_a_guide_does_not_start_from_a_scorer(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert app.main(command("align", tmp_path / "run", "init_from=scorer", "max_train_steps=1")) == 2
    assert (
        "init_from scorer was trained on split=all, which includes the held-out combinations; set split=all"
        in capfd.readouterr().err
    )
    assert app.main(command("align", tmp_path / "run", "init_from=scorer", "split=all", "max_train_steps=1")) == 0
    said = " ".join(capfd.readouterr().err.split())
    assert "init_from scorer has no record of its training data" in said
    assert re.search(r"init_from scorer: 1 of [\d,]+ values of model were loaded from it", said)


@pytest.mark.parametrize("family", ["cgan", "prior"])
def test_images_without_captions_train_under_the_null_caption(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled: list[torch.Tensor] = []
    forward, judged = Prior.forward, rules.discriminator_loss

    def read(self, codes, text, order=None, draws=None):
        labelled.extend([] if draws is None else draws.caption_B >= 0)
        return forward(self, codes, text, order, draws)

    def judge(discriminator, real, fake, captions, *rest):
        labelled.extend(captions.labelled_B)
        return judged(discriminator, real, fake, captions, *rest)

    monkeypatch.setattr(Prior, "forward", read)
    monkeypatch.setattr(rules, "discriminator_loss", judge)
    folder, run = tmp_path / "images", tmp_path / "run"
    folder.mkdir()
    for i, image in enumerate(open_dataset("shapes-2", "val", View(16, limit=40)).images(range(40))):
        Image.fromarray(image).save(folder / f"{i}.png")
    assert app.main(command(family, run, f"data.unlabelled={json.dumps(str(folder))}", "max_train_steps=12")) == 0
    assert len(labelled) == 48 and 12 <= sum(map(int, labelled)) <= 36
    record = read_record(run / "trained_on.safetensors")
    assert record is not None and len(record.data) == 2 and len(record.captions) <= 64
    assert "" not in getattr(load_encoder(run / "text"), "vocabulary", [])


def test_a_tokenizer_trains_on_any_folder_of_images(tmp_path: Path) -> None:
    folder, run = tmp_path / "images", tmp_path / "run"
    folder.mkdir()
    for i, image in enumerate(open_dataset("shapes-2", "val", View(16, limit=60)).images(range(60))):
        Image.fromarray(image).save(folder / f"{i}.png")
    words = command("vqvae", run, "max_train_steps=3", "validation_steps=3")
    words[words.index("shapes-1")] = str(folder)
    assert app.main(words) == 0
    record = read_record(run / "trained_on.safetensors")
    assert record is not None and not len(record.captions) and len(record.pixels) == record.data[0]["pictures"]
    assert {"val_psnr", "val_ssim"} <= {key for line in journal.read(run / "journal.jsonl") for key in line}
