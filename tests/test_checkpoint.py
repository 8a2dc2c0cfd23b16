"""Checkpoints are complete or absent, damage is noticed, and state is restored bit for bit."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from builders.forks import fork, wait
from t2i import checkpoint
from t2i.errors import InputError
from t2i.training.state.optimizers import load_optimizer_state, optimizer_state

CRASHED = 77


def state_of(step: int) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(40, 60, generator=generator)
    return {"model": {"weight": weight, "bias": weight[0]}, "ema": {"weight": weight / 2}}


def save(root: Path, step: int) -> Path:
    return checkpoint.save(root, step, state_of(step), {"images_seen": 10 * step})


def assert_holds(path: Path, step: int) -> None:
    state, manifest = checkpoint.load(path)
    assert manifest["step"] == step and manifest["images_seen"] == 10 * step
    for part, tensors in state_of(step).items():
        assert state[part].keys() == tensors.keys()
        assert all(torch.equal(state[part][name], tensor) for name, tensor in tensors.items())


def intact(root: Path) -> list[int]:
    found = [path for path in sorted(root.glob("step-*")) if ".tmp" not in path.name]
    return [int(path.name.removeprefix("step-")) for path in found if checkpoint.verify(path) is None]


def test_every_kind_of_tensor_comes_back(tmp_path):
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tied = torch.randn(3)
    tensors = {
        "channels_last": image,
        "tied_a": tied,
        "tied_b": tied,
        "view": torch.randn(6, 6)[::2, 1:3],
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.empty(0, 4),
        "bfloat16": torch.randn(7).bfloat16(),
        "counter": torch.tensor(2**40 + 1),
        "flags": torch.tensor([True, False]),
        "special": torch.tensor([-0.0, float("inf"), 1e-45]),
    }
    path = checkpoint.save(
        tmp_path / "new", 12, {"model": tensors, "none": {}}, {"config": {"lr": 1e-5}, "family": "cgan"}
    )
    assert path == tmp_path / "new" / "step-00000012"
    assert sorted(entry.name for entry in path.iterdir()) == ["manifest.json", "model.safetensors", "none.safetensors"]
    state, manifest = checkpoint.load(path)
    assert state["none"] == {} and manifest["config"] == {"lr": 1e-5} and manifest["schema"] == checkpoint.SCHEMA
    for name, tensor in tensors.items():
        back = state["model"][name]
        assert back.dtype == tensor.dtype and back.shape == tensor.shape
        bits = [x.contiguous().view(torch.uint8) if x.ndim else x for x in (back, tensor)]
        assert torch.equal(*bits)


def test_an_intact_checkpoint_is_not_written_again_and_a_damaged_one_is_replaced(tmp_path):
    path = save(tmp_path, 5)
    before = (path / "manifest.json").stat().st_ino
    assert save(tmp_path, 5) == path and (path / "manifest.json").stat().st_ino == before
    (path / "ema.safetensors").unlink()
    assert save(tmp_path, 5) == path
    assert_holds(path, 5)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000005"]


def test_names_and_keys_that_would_break_a_checkpoint_are_refused(tmp_path):
    with pytest.raises(ValueError, match="names of parts"):
        checkpoint.save(tmp_path, 1, {"../model": {}}, {})
    with pytest.raises(ValueError, match="manifest keys"):
        checkpoint.save(tmp_path, 1, {}, {"sha256": "x"})
    assert list(tmp_path.iterdir()) == []


# ---- crashes -------------------------------------------------------------------------------------------------------


def save_and_rotate(root: Path) -> None:
    save(root, 4)
    checkpoint.rotate(root, 2)


def trace_lines(action: Callable[[], None], visit: Callable[[int], None]) -> None:
    """Runs `action` and calls `visit(n)` before the n-th line of checkpoint.py that it executes."""
    lines = 0

    def local(frame, event, _):
        nonlocal lines
        if event == "line":
            lines += 1
            visit(lines)
        return local

    def trace(frame, event, _):
        return local(frame, event, _) if frame.f_code.co_filename == checkpoint.__file__ else None

    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(None)


def crash_at_line(number: int, action: Callable[[], None]) -> None:
    trace_lines(action, lambda line: os._exit(CRASHED) if line == number else None)


def lines_that_change_the_disk(root: Path, action: Callable[[], None]) -> list[int]:
    """Returns the first line at which each state of the disk exists."""
    states: list[object] = []
    changed: list[int] = []

    def visit(line: int) -> None:
        entries = sorted((str(path), path.stat().st_size) for path in root.rglob("*"))
        if not states or states[-1] != entries:
            states.append(entries)
            changed.append(line)

    trace_lines(action, visit)
    return changed


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("three")
    for step in (1, 2, 3):
        save(root, step)
    return root


def assert_survived(root: Path) -> int:
    """Checks the folder after a crash in save(4) and rotate(2); returns the newest step."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a torn folder under a good name would be warned of
        newest = checkpoint.latest(root)
    assert newest is not None
    step = int(newest.name.removeprefix("step-"))
    assert step in (3, 4) and len(intact(root)) >= 2
    assert_holds(newest, step)
    # and life goes on
    save_and_rotate(root)
    assert intact(root) == [3, 4] and len(list(root.iterdir())) == 2
    save(root, 5)
    assert checkpoint.latest(root) == root / "step-00000005"
    return step


def test_a_crash_in_any_state_of_the_disk_leaves_good_checkpoints(three, tmp_path):
    """Crashes between any two lines of checkpoint.py, so all states of the disk while saving and rotating are visited."""
    dry = shutil.copytree(three, tmp_path / "dry")
    points = lines_that_change_the_disk(dry, lambda: save_and_rotate(dry))
    assert len(points) >= 12
    newest = []
    for number in points:
        root = shutil.copytree(three, tmp_path / str(number))
        assert wait(fork(lambda n=number, r=root: crash_at_line(n, lambda: save_and_rotate(r)))) == CRASHED
        newest.append(assert_survived(root))
    assert newest == sorted(newest) and set(newest) == {3, 4}


@pytest.mark.parametrize("victim", ["model.safetensors", "ema.safetensors", "manifest.json"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_crash_within_a_file_leaves_good_checkpoints(three, tmp_path, monkeypatch, victim, share):
    write = checkpoint._write

    def torn(path: Path, data: bytes) -> None:
        if path.name == victim:
            path.write_bytes(data[: int(share * len(data))])
            os._exit(CRASHED)
        write(path, data)

    root = shutil.copytree(three, tmp_path / "root")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write", torn)
        assert wait(fork(lambda: save(root, 4))) == CRASHED
    assert assert_survived(root) == 3


def test_kills_at_random_moments_lose_at_most_the_save_that_was_running(tmp_path):
    chance = random.Random(0)
    step, killed = 1, 0
    save(tmp_path, step)
    for _ in range(25):

        def forever(first: int = step) -> None:
            for number in range(first + 1, first + 10_000):
                save(tmp_path, number)
                checkpoint.rotate(tmp_path, 2)

        pid = fork(forever)
        while not (tmp_path / f"step-{step + 1:08d}").exists():
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.03))
        newest = max(intact(tmp_path))
        os.kill(pid, signal.SIGKILL)
        killed += wait(pid) == -signal.SIGKILL
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            path = checkpoint.latest(tmp_path)
        assert path is not None
        step = int(path.name.removeprefix("step-"))
        assert step >= newest
        assert_holds(path, step)
    assert killed == 25


# ---- full and unwritable disks ---------------------------------------------------------------------------------------


def test_a_full_disk_gives_one_line_and_leaves_nothing_half_written(three, tmp_path):
    """RLIMIT_FSIZE fails a write at any offset, like a full disk."""
    size = (three / "step-00000003" / "model.safetensors").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    root = shutil.copytree(three, tmp_path / "root")
    for limit in [0, 1, 100, 4096, *range(500, size, size // 12), size - 1]:

        def limited(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                save(root, 4)
            except InputError as error:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
                assert "older checkpoints are intact" in str(error) and "step-00000004" in str(error)
                assert "\n" not in str(error)
                raise SystemExit(3) from error

        assert wait(fork(limited)) == 3
        assert sorted(entry.name for entry in root.iterdir()) == [f"step-0000000{n}" for n in (1, 2, 3)]
    assert intact(root) == [1, 2, 3]


def test_too_little_space_is_noticed_before_writing(three, tmp_path, monkeypatch):
    root = shutil.copytree(three, tmp_path / "root")
    usage = shutil.disk_usage(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_100))
    monkeypatch.setattr(checkpoint, "_write", lambda *_: pytest.fail("it wrote"))
    with pytest.raises(InputError, match="no room for checkpoint 4 in .*it needs 1 MB, 1 MB are free"):
        save(root, 4)
    assert intact(root) == [1, 2, 3] and len(list(root.iterdir())) == 3


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_errors_of_the_file_system_are_told_and_cleaned_up(three, tmp_path, monkeypatch, call):
    root = shutil.copytree(three, tmp_path / "root")

    def failing(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(InputError, match="cannot write checkpoint .*step-00000004: Input/output error"):
            save(root, 4)
    assert intact(root) == [1, 2, 3] and len(list(root.iterdir())) == 3


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "checkpoints").write_text("not a folder")
    with pytest.raises(InputError, match="cannot write checkpoint"):
        save(tmp_path / "checkpoints", 1)


# ---- damage ----------------------------------------------------------------------------------------------------------


def damage(path: Path, other: Path, kind: str, chance: random.Random) -> None:
    files = sorted(path.iterdir())
    victim = chance.choice(files)
    data = bytearray(victim.read_bytes())
    if kind == "bit":
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif kind == "zeros":
        victim = path / chance.choice(["model.safetensors", "ema.safetensors"])
        data = bytearray(victim.read_bytes())
        start = chance.randrange(0, len(data) - 4096)
        assert any(data[start : start + 4096])
        data[start : start + 4096] = bytes(4096)
    elif kind == "truncated":
        data = data[: chance.randrange(len(data))]
    elif kind == "swapped":
        data = bytearray((other / victim.name).read_bytes())
    elif kind == "edited":
        victim = path / "manifest.json"
        manifest = json.loads(victim.read_text())
        key = chance.choice(["step", "images_seen", "schema", "files", "sha256", "note"])
        entry = chance.choice(list(manifest["files"].values()))
        if key == "files":
            entry["sha256"] = entry["sha256"][::-1]
        else:
            manifest[key] = chance.choice([None, -1, 7, "x", [], {}])
        data = bytearray(json.dumps(manifest, indent=1).encode() + b"\n")
    if kind == "missing":
        victim.unlink()
    else:
        victim.write_bytes(data)


@pytest.mark.parametrize("kind", ["bit", "zeros", "truncated", "missing", "swapped", "edited"])
def test_damage_is_noticed_and_the_checkpoint_before_is_used(three, tmp_path, kind):
    chance = random.Random(kind)
    for trial in range(34):
        root = shutil.copytree(three, tmp_path / str(trial))
        newest = root / "step-00000003"
        damage(newest, root / "step-00000002", kind, chance)
        reason = checkpoint.verify(newest)
        assert reason and "\n" not in reason
        with pytest.warns(UserWarning, match="step-00000003 is damaged and skipped: "):
            assert checkpoint.latest(root) == root / "step-00000002"
        with pytest.raises(InputError, match="step-00000003"):
            checkpoint.load(newest)
        shutil.rmtree(root)


def test_a_renamed_checkpoint_and_a_newer_schema_are_refused(three, tmp_path):
    renamed = shutil.copytree(three / "step-00000002", tmp_path / "step-00000009")
    assert checkpoint.verify(renamed) == "manifest.json is of step 2"
    manifest = json.loads((renamed / "manifest.json").read_text()) | {"schema": 99}
    (renamed / "manifest.json").write_text(json.dumps(manifest))
    assert "schema 99, newer than this t2i reads" in str(checkpoint.verify(renamed))
    assert "No such file" in str(checkpoint.verify(tmp_path / "step-00000077"))


@pytest.mark.parametrize(
    "files",
    [
        {"../../secret.safetensors": {"bytes": 1, "sha256": "0"}},
        {"/etc/passwd": {"bytes": 1, "sha256": "0"}},
        {"model.pt": {"bytes": 1, "sha256": "0"}},
        {"model.safetensors": 5},
        [],
        None,
    ],
)
def test_a_forged_manifest_reaches_no_file_outside(tmp_path, files):
    manifest = {"schema": 1, "step": 1, "files": files}
    manifest["sha256"] = checkpoint._digest(manifest)
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    (folder / "manifest.json").write_text(checkpoint._dump(manifest))
    assert checkpoint.verify(folder) == "manifest.json does not list the files of a checkpoint"


@pytest.mark.parametrize(
    "text", ["", "[" * 100_000, "{}", "null", '{"schema": 1}', "\ud800".encode("utf-8", "surrogatepass")]
)
def test_anything_may_stand_in_a_manifest(tmp_path, text):
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    (folder / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert str(checkpoint.verify(folder)).startswith("manifest.json")
    with pytest.raises(InputError):
        checkpoint.load(folder)


def test_what_is_no_checkpoint_is_left_alone(tmp_path):
    for name in ("step-1", "step-00000003.bak", "notes"):
        (tmp_path / name).mkdir()
    assert checkpoint.latest(tmp_path) is None and checkpoint.latest(tmp_path / "missing") is None
    save(tmp_path, 2)
    checkpoint.rotate(tmp_path, 2)
    assert len(list(tmp_path.iterdir())) == 4


# ---- rotation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "left"), [(0, 2), (1, 2), (2, 2), (3, 3), (9, 5)])
def test_rotation_keeps_the_newest_and_never_fewer_than_two(tmp_path, limit, left):
    for step in (1, 2, 3, 10, 100):
        save(tmp_path, step)
    checkpoint.rotate(tmp_path, limit)
    assert intact(tmp_path) == [1, 2, 3, 10, 100][-left:] and len(list(tmp_path.iterdir())) == left


def test_rotation_spares_what_is_pinned_and_counts_only_intact_ones(tmp_path):
    for step in range(1, 8):
        save(tmp_path, step)
    (tmp_path / "step-00000006" / "ema.safetensors").write_bytes(b"rot")
    with pytest.warns(UserWarning, match="step-00000006 is damaged: ema.safetensors has 3 bytes"):
        checkpoint.rotate(tmp_path, 2, keep=[tmp_path / "step-00000002"])
    assert intact(tmp_path) == [2, 5, 7]


def test_steps_beyond_eight_digits_sort_by_number(tmp_path):
    save(tmp_path, 99_999_999)
    save(tmp_path, 100_000_000)
    assert checkpoint.latest(tmp_path) == tmp_path / "step-100000000"


# ---- modules and optimizers ------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, 1e-2, betas=(0.0, 0.99)),
    "amsgrad": lambda p: torch.optim.AdamW(p, 1e-2, amsgrad=True),
    "groups": lambda p: torch.optim.Adam([{"params": p[:1]}, {"params": p[1:], "lr": 1e-3}], 1e-2),
    "momentum": lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9),
    "plain": lambda p: torch.optim.SGD(p, 1e-2),
    "adafactor": lambda p: torch.optim.Adafactor(p, 1e-2),
    "fused": lambda p: torch.optim.Adam(p, 1e-2, fused=True),
}


def network(seed: int, width: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(4 * width, 2)
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        images = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_bit_for_bit(tmp_path, name):
    model = network(0)
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    train(model, optimizer, range(4))
    state = {"model": model.state_dict(), "optimizer": optimizer_state(optimizer)}
    back, _ = checkpoint.load(checkpoint.save(tmp_path, 4, state, {}))

    other = network(1)
    resumed = OPTIMIZERS[name](list(other.parameters()))
    train(other, resumed, range(20, 22))  # what stands there is overwritten
    checkpoint.load_module(other, back["model"], "model")
    load_optimizer_state(resumed, back["optimizer"])
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        mine, its = optimizer.state[left], resumed.state[right]
        assert mine.keys() == its.keys()
        for key in mine:
            if mine[key] is not None:
                assert its[key].dtype == mine[key].dtype and its[key].stride() == mine[key].stride()

    train(model, optimizer, range(4, 8))
    train(other, resumed, range(4, 8))
    final = [optimizer_state(o) | m.state_dict() for m, o in ((model, optimizer), (other, resumed))]
    assert final[0].keys() == final[1].keys()
    assert all(torch.equal(final[0][key], final[1][key]) for key in final[0])


def test_an_optimizer_that_has_not_stepped_comes_back_empty():
    model = network(0)
    fresh, used = (OPTIMIZERS["adam"](list(model.parameters())) for _ in range(2))
    train(model, used, range(2))
    load_optimizer_state(used, optimizer_state(fresh))
    assert not used.state


def test_another_model_is_refused_in_one_line_and_nothing_changes():
    small, large = network(0, width=5), network(0, width=8)
    before = {key: tensor.clone() for key, tensor in small.state_dict().items()}
    extra = before | {"9.weight": torch.zeros(1)}
    missing = {key: tensor for key, tensor in before.items() if key != "3.bias"}
    for tensors, what in (
        (large.state_dict(), r"generator has 0\.weight of shape \[8, 3, 3, 3\], this model of shape \[5, 3, 3, 3\]"),
        (extra, r"generator has a tensor 9\.weight, which this model does not have"),
        (missing, r"generator has no tensor 3\.bias"),
    ):
        with pytest.raises(InputError, match=f"^checkpoint of another model: {what}; name another[^\n]+$"):
            checkpoint.load_module(small, tensors, "generator")
    assert all(torch.equal(before[key], tensor) for key, tensor in small.state_dict().items())


def test_the_optimizer_of_another_model_is_refused():
    small, large = network(0, width=5), network(0, width=8)
    used, target = (OPTIMIZERS["adam"](list(model.parameters())) for model in (large, small))
    train(large, used, range(2))
    train(small, target, range(2))
    before = {key: tensor.clone() for key, tensor in optimizer_state(target).items()}
    with pytest.raises(
        InputError, match=r"optimizer tensor 0\.exp_avg is \[8, 3, 3, 3\], its parameter \[5, 3, 3, 3\]"
    ):
        load_optimizer_state(target, optimizer_state(used))
    with pytest.raises(InputError, match=r"optimizer tensor 6\.step, and it has 6 parameters"):
        load_optimizer_state(target, {"6.step": torch.tensor(1.0)})
    with pytest.raises(InputError, match="optimizer tensor step"):
        load_optimizer_state(target, {"step": torch.tensor(1.0)})
    after = optimizer_state(target)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
