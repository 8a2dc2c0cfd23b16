"""Faults around a run: kills inside a save, deleted folders, changed data, other encoders. Nothing is lost silently."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from builders.forks import fork, in_child, wait
from builders.toy_run import config, digests, saved_steps, train, two_processes, warm_up
from t2i import checkpoint
from t2i.data import View, open_dataset
from t2i.errors import InputError
from t2i.training.directory import DirectoryLock
from t2i.training.run import Run


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    warm_up()


def refusal(action: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        in_child(action)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_folder(root: Path, count: int = 24, **captions: str) -> Path:
    """Writes images of random colours with a caption each; `captions` replaces some."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(root / f"{i:03d}.png")
        rows.append(json.dumps({"file_name": f"{i:03d}.png", "text": captions.get(f"c{i}", f"image {i}")}))
    (root / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return root


def open_folder(root: Path):
    return open_dataset(str(root), "train", View(resolution=32))


# ---- saves that are cut off -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("writes", range(7))
def test_a_run_killed_inside_its_first_save_starts_again(tmp_path: Path, writes: int) -> None:
    """A save writes five parts and a manifest: the run is killed before each of them, and before the folder is renamed."""

    def dies() -> None:
        real, left = checkpoint._write, [writes]

        def write(path: Path, data: bytes) -> None:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            real(path, data)

        checkpoint._write = write
        checkpoint.flush = lambda path: os.kill(os.getpid(), signal.SIGKILL)  # after the last file
        train(tmp_path, config(max_train_steps=5))

    assert wait(fork(dies)) == -signal.SIGKILL
    assert checkpoint.steps(tmp_path / "checkpoints") == [] and list((tmp_path / "checkpoints").iterdir())
    assert wait(fork(lambda: train(tmp_path, config(max_train_steps=5)))) == 0
    assert saved_steps(tmp_path) == [4, 5]


def test_a_lost_command_file_is_written_again(tmp_path: Path) -> None:
    assert wait(fork(lambda: train(tmp_path, config(max_train_steps=5)))) == 0
    (tmp_path / "command.json").unlink()
    assert "is of toy, not of cgan" in refusal(lambda: train(tmp_path, config(max_train_steps=6), family="cgan"))
    assert wait(fork(lambda: train(tmp_path, config(max_train_steps=6)))) == 0
    assert (tmp_path / "command.json").exists() and saved_steps(tmp_path) == [4, 5, 6]


@pytest.mark.parametrize(("moved", "words"), [(True, "was renamed to"), (False, "was deleted or replaced")])
def test_a_run_directory_that_goes_away_is_an_error(tmp_path: Path, moved: bool, words: str) -> None:
    directory = tmp_path / "run"

    def take_away(run: Run) -> None:
        if run.step == 6:
            directory.rename(tmp_path / "elsewhere") if moved else shutil.rmtree(directory)

    said = refusal(lambda: train(directory, config(), take_away))
    assert words in said and "while the run was at step 8" in said and "last checkpoint: step 4" in said
    assert not directory.exists()
    if moved:
        assert wait(fork(lambda: train(tmp_path / "elsewhere", config()))) == 0


def test_two_processes_both_hear_of_a_directory_that_goes_away(tmp_path: Path) -> None:
    directory = tmp_path / "run"

    def take_away(run: Run) -> None:
        if run.step == 6 and run.is_main:
            shutil.rmtree(directory)

    def body(_: int) -> None:
        with pytest.raises(InputError, match="was deleted or replaced"):
            train(directory, config(), take_away)

    assert two_processes(body) == [0, 0]


def test_a_lock_that_was_deleted_with_its_directory_is_no_lock(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    first = DirectoryLock(directory)
    assert first.is_in_place()
    shutil.rmtree(directory)
    assert not first.is_in_place() and first.moved_to() is None
    second = DirectoryLock(directory)
    assert second.is_in_place() and not first.is_in_place()
    first.release()
    with pytest.raises(InputError, match="is being written by"):
        DirectoryLock(directory)
    second.release()


def test_a_refused_start_removes_its_files_before_it_frees_the_directory(tmp_path: Path) -> None:
    """A second start during the clean-up is refused, or finds nothing of the first."""
    directory = tmp_path / "run"
    seen: list[str] = []

    def body() -> None:
        real = shutil.rmtree

        def rmtree(path: Path, *words: Any, **named: Any) -> None:
            try:
                DirectoryLock(directory)
                seen.append("taken")
            except InputError:
                seen.append("refused")
            real(path, *words, **named)

        shutil.rmtree = rmtree  # type: ignore[assignment]
        with pytest.raises(InputError, match="no"), Run(directory, config(), "toy") as run:
            (run.directory / "text").mkdir()
            raise InputError("no")
        assert seen == ["refused"] and not directory.exists()

    assert wait(fork(body)) == 0


def test_a_run_saves_by_time_too(tmp_path: Path) -> None:
    cfg = config(checkpointing_steps=1000, checkpointing_minutes=0.3 / 60, max_train_steps=8)
    assert wait(fork(lambda: train(tmp_path, cfg, lambda run: time.sleep(0.1)))) == 0
    kept = saved_steps(tmp_path)
    assert kept[-1] == 8 and len(kept) == 3 and 1 < kept[0] < 7
    assert wait(fork(lambda: train(tmp_path / "exact", config(max_train_steps=8)))) == 0
    assert digests(tmp_path, 8) == digests(tmp_path / "exact", 8)


# ---- what decides a run ---------------------------------------------------------------------------------------------


def change_a_caption(root: Path) -> None:
    path = root / "metadata.jsonl"
    path.write_text(path.read_text().replace("image 7", "image seven"))


def change_an_image(root: Path) -> None:
    names = sorted(root.glob("*.png"))
    Image.fromarray(np.full((16, 16, 3), 9, np.uint8)).save(names[5])


def swap_two_images(root: Path) -> None:
    first, second = sorted(root.glob("*.png"))[:2]
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


def add_a_caption(root: Path) -> None:
    with open(root / "metadata.jsonl", "a") as file:
        file.write(json.dumps({"file_name": "003.png", "text": "another"}) + "\n")


def remove_images(root: Path) -> None:
    for path in sorted(root.glob("*.png"))[:6]:
        path.unlink()


def rename_an_image(root: Path) -> None:
    (root / "004.png").rename(root / "104.png")
    path = root / "metadata.jsonl"
    path.write_text(path.read_text().replace("004.png", "104.png"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_a_caption, "other captions"),
        (change_an_image, "other contents of image files"),
        (swap_two_images, "other contents of image files"),
        (add_a_caption, "captions, now"),
        (remove_images, "images, now"),
        (rename_an_image, "other names of images"),
    ],
)
def test_data_changed_between_stop_and_resume_is_refused(tmp_path: Path, change, words: str) -> None:
    root, run = write_folder(tmp_path / "data"), tmp_path / "run"
    assert wait(fork(lambda: train(run, config(max_train_steps=5), data=open_folder(root)))) == 0
    before = digests(run, 5)
    change(root)
    said = refusal(lambda: train(run, config(max_train_steps=6), data=open_folder(root)))
    assert words in said and "restore it to resume, or name another run" in said
    assert saved_steps(run) == [4, 5] and digests(run, 5) == before


def test_the_same_data_at_another_place_resumes(tmp_path: Path, monkeypatch) -> None:
    root, run = write_folder(tmp_path / "data"), tmp_path / "run"
    assert wait(fork(lambda: train(run, config(max_train_steps=5), data=open_folder(root)))) == 0
    shutil.copytree(root, tmp_path / "copy")
    shutil.rmtree(root)
    monkeypatch.setenv("T2I_CACHE", str(tmp_path / "empty"))
    again = open_folder(tmp_path / "copy")
    assert wait(fork(lambda: train(run, config(max_train_steps=6), data=again))) == 0
    assert saved_steps(run) == [4, 5, 6]


def test_processes_with_different_data_are_refused(tmp_path: Path) -> None:
    roots = [write_folder(tmp_path / "a", 36), write_folder(tmp_path / "b", 30)]

    def body(rank: int) -> None:
        with pytest.raises(InputError, match=r"have different data \(rank 0: \d+ images.*rank 1: \d+ images"):
            train(tmp_path / "run", config(), data=open_folder(roots[rank]))

    assert two_processes(body) == [0, 0]


def test_a_part_with_another_digest_is_refused_and_named(tmp_path: Path) -> None:
    def with_digest(digest: str) -> None:
        with Run(tmp_path, config(), "toy") as run:
            run.register("model", torch.nn.Linear(1, 1))
            run.identity.keep("text_digest", digest, "text encoder")
            run.resume()
            run.step += 1
            run.save()

    in_child(lambda: with_digest("a" * 64))
    said = refusal(lambda: with_digest("b" * 64))
    assert "the text encoder is not the one that run" in said and "(digest aaaaaaaaaaaa, now bbbbbbbbbbbb)" in said
    in_child(lambda: with_digest("a" * 64))


def test_what_one_process_raises_is_raised_on_all(tmp_path: Path) -> None:
    def body(rank: int) -> None:
        def fail() -> None:
            if rank == 1:
                raise OSError("no space")

        with Run(tmp_path, config(), "toy") as run:
            with pytest.raises((InputError, OSError), match="no space"):
                run.ranks.each(fail)
            assert run.ranks.everyone(rank) == [0, 1]
            assert run.ranks.each(lambda: rank + 1) == rank + 1

    assert two_processes(body) == [0, 0]


@pytest.mark.parametrize("two", [False, True])
def test_data_that_vanishes_ends_a_run_with_all_that_is_done(tmp_path: Path, two: bool) -> None:
    """No image is blamed, the steps are saved, and the run continues once the data is back."""
    root, whole, run = write_folder(tmp_path / "data", 200), tmp_path / "whole", tmp_path / "run"
    cfg = config(checkpointing_steps=100)

    def start(directory: Path, each_step: Callable[[Run], None] = lambda run: None) -> list[int]:
        def body(rank: int = 0) -> None:
            try:
                train(directory, cfg, each_step, data=open_folder(root))
            except InputError as error:
                assert "has vanished" in str(error) and "was saved at step 2, and the same command" in str(error)
                raise SystemExit(7) from None

        return two_processes(body) if two else [wait(fork(body))]

    def take_away(running: Run) -> None:
        if running.step == 2 and running.is_main:
            root.rename(tmp_path / "away")
        if running.step == 2:
            running.ranks.everyone(0)

    number = 2 if two else 1
    assert start(whole) == [0] * number
    assert start(run, take_away) == [7] * number
    assert saved_steps(run) == [2] and not (run / "quarantine.jsonl").exists()
    assert "has vanished" in (run / "STOPPED").read_text()
    (tmp_path / "away").rename(root)
    assert start(run) == [0] * number and digests(run, 12) == digests(whole, 12)


def test_a_killed_data_worker_ends_a_run_with_all_that_is_done(tmp_path: Path) -> None:
    def train_with_workers() -> None:
        cfg = config(max_train_steps=30, checkpointing_steps=100, dataloader_num_workers=1)

        def kill(run: Run) -> None:
            if run.step == 3:
                for child in multiprocessing.active_children():
                    os.kill(child.pid or 0, signal.SIGKILL)

        train(tmp_path, cfg, kill)

    said = refusal(train_with_workers)
    (step,) = saved_steps(tmp_path)
    assert step >= 3 and f"the run was saved at step {step}, and the same command resumes it" in said
    assert "a data worker of 1 has died" in said and "dataloader_num_workers" in (tmp_path / "STOPPED").read_text()


def test_validation_data_changed_between_stop_and_resume_is_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", 60)

    def start(steps: int) -> None:
        val = open_dataset(str(root), "val", View(resolution=32))
        with Run(tmp_path / "run", config(max_train_steps=steps), "toy") as run:
            run.identity.keep_held_out("val", val)
            run.resume()
            run.step = steps

    assert wait(fork(lambda: start(2))) == 0
    assert wait(fork(lambda: start(3))) == 0
    name = open_dataset(str(root), "val", View(resolution=32)).ids[0]
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(root / name)
    assert "the split val of the data is not the one that run" in refusal(lambda: start(4))


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "command.json",
        "journal.jsonl",
        "checkpoints",
        "samples",
        "text",
        "image",
        "swanlab",
        "STOPPED",
        ".lock",
    ],
)
def test_nothing_is_written_through_a_link_that_leads_out_of_a_run(tmp_path: Path, name: str) -> None:
    outside, run = tmp_path / "outside", tmp_path / "run"
    run.mkdir()
    if name in ("checkpoints", "samples", "text", "image", "swanlab"):
        outside.mkdir()
        (outside / "mine").write_text("mine")
    else:
        outside.write_text("mine")
    (run / name).symlink_to(outside)
    assert f"{run / name} is a link that leads out of {run}" in refusal(lambda: train(run, config()))
    assert os.listdir(run) == [name] and "mine" in (os.listdir(outside) if outside.is_dir() else outside.read_text())


@pytest.mark.parametrize("name", [".lock", "journal.jsonl", "command.json", "config.yaml", "checkpoints"])
def test_a_pipe_in_a_run_directory_hangs_nothing(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert "is a pipe or a device, not a file" in refusal(lambda: train(tmp_path, config()))


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"\xff\xfe", b"null", b"", b'{"family": []}', b'{"family": "cgan"}']
)
def test_odd_papers_of_a_run_end_in_one_line_or_are_written_anew(tmp_path: Path, content: bytes) -> None:
    assert wait(fork(lambda: train(tmp_path, config(max_train_steps=5)))) == 0
    for name in ("command.json", "journal.jsonl"):
        (tmp_path / name).write_bytes(content)
    if content[:1] == b"{":
        assert "holds a run of" in refusal(lambda: train(tmp_path, config(max_train_steps=6)))
        return
    assert wait(fork(lambda: train(tmp_path, config(max_train_steps=6)))) == 0
    assert json.loads((tmp_path / "command.json").read_text())["family"] == "toy" and saved_steps(tmp_path)[-1] == 6
