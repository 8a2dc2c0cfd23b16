"""A run that is stopped anywhere continues bit for bit; one writer, common decisions, clean ends."""

import contextlib
import json
import math
import os
import pty
import re
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from builders.forks import fork, in_child, wait
from builders.toy_run import (
    Config,
    config,
    digests,
    kill_at,
    saved_steps,
    train,
    two_processes,
    warm_up,
)
from t2i import checkpoint, hardware
from t2i.errors import InputError
from t2i.hardware import free_cores, prepare_cpu
from t2i.training import journal
from t2i.training.accelerator import check_launch
from t2i.training.directory import DirectoryLock
from t2i.training.optimization import EMA, NonFiniteGuard, learning_rate
from t2i.training.run import RESUME_ME, Run
from t2i.training.stopping import budget as timing
from t2i.training.stopping.budget import Budget
from t2i.training.stopping.signals import StopSignals


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    warm_up()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "run"
    assert wait(fork(lambda: train(directory, config()))) == 0
    return directory


# ---- a whole run ---------------------------------------------------------------------------------------------------


def test_a_run_leaves_what_is_promised(undisturbed):
    names = {path.name for path in undisturbed.iterdir()}
    assert names == {"config.yaml", "command.json", "journal.jsonl", "checkpoints", ".lock"}
    assert saved_steps(undisturbed) == [4, 8, 12]
    command = json.loads((undisturbed / "command.json").read_text())
    assert (
        command["family"] == "toy" and command["argv"] == sys.argv and command["versions"]["torch"] == torch.__version__
    )
    from t2i.config.load import load

    assert load(Config, undisturbed) == config()
    records = journal.read(undisturbed / "journal.jsonl")
    assert [record["step"] for record in records] == [3, 6, 9, 12]
    for record in records:
        assert record.keys() == {"step", "time", "loss", "rate", "learning_rate", "images_per_second", "data_wait"}
        assert record["images_per_second"] > 0 and 0 < record["data_wait"] < 1
    rates = [learning_rate(step, 12, 1e-2, 3) for step in range(12)]
    assert [record["rate"] for record in records] == pytest.approx(
        [sum(rates[i : i + 3]) / 3 for i in (0, 3, 6, 9)], 1e-5
    )
    _, manifest = checkpoint.load(undisturbed / "checkpoints" / "step-00000012")
    assert manifest["family"] == "toy" and manifest["images_seen"] == 96 and manifest["total_steps"] == 12
    assert manifest["config"] == config().model_dump(mode="json") and len(manifest["config_hash"]) == 64


@pytest.mark.parametrize("kills", [(1,), (4, 9), (6, 7), (11,), (5, 12)])
def test_a_killed_and_resumed_run_ends_with_the_same_bits(undisturbed, tmp_path, kills):
    for step in kills:
        assert wait(fork(lambda s=step: train(tmp_path, config(), kill_at(s)))) == -signal.SIGKILL
    assert wait(fork(lambda: train(tmp_path, config()))) == 0
    assert digests(tmp_path, 12) == digests(undisturbed, 12)
    assert [record["step"] for record in journal.read(tmp_path / "journal.jsonl")] == [3, 6, 9, 12]


def test_a_damaged_newest_checkpoint_costs_only_the_steps_since_the_one_before(undisturbed, tmp_path, recwarn):
    assert wait(fork(lambda: train(tmp_path, config(), kill_at(9)))) == -signal.SIGKILL
    victim = tmp_path / "checkpoints" / "step-00000008" / "critic.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1])
    started = []
    in_child(lambda: train(tmp_path, config(), lambda run: started.append(run.step)))
    assert digests(tmp_path, 12) == digests(undisturbed, 12) and digests(tmp_path, 8) == digests(undisturbed, 8)


def test_a_run_without_an_intact_checkpoint_is_not_silently_started_again(tmp_path):
    assert wait(fork(lambda: train(tmp_path, config(max_train_steps=5)))) == 0
    for path in tmp_path.glob("checkpoints/*/ema.safetensors"):
        path.write_bytes(b"rot")
    said = refusal(lambda: train(tmp_path, config(max_train_steps=5)))
    assert f"no checkpoint in {tmp_path / 'checkpoints'} is intact; restore one" in said


def test_broken_pictures_are_listed_once_a_run(tmp_path):
    def report() -> None:
        with Run(tmp_path, config(), "toy") as run:
            for row in (3, 4, 3):
                run.quarantine({"row": row, "id": f"{row}.png", "reason": "truncated"})

    for _ in range(2):
        in_child(report)
    lines = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["3.png", "4.png"]


def test_a_stop_between_saves_keeps_the_extra_keys(tmp_path):
    def stop(run: Run) -> None:
        if run.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    assert wait(fork(lambda: train(tmp_path, config(), stop))) == RESUME_ME
    _, manifest = checkpoint.load(tmp_path / "checkpoints" / "step-00000006")
    assert manifest["last"] == 4


def test_running_a_finished_run_again_changes_nothing(undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*.safetensors")}
    assert wait(fork(lambda: train(undisturbed, config(), lambda run: os._exit(9)))) == 0
    assert before == {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*.safetensors")}


def test_a_longer_run_resumes_a_shorter_one(tmp_path):
    assert wait(fork(lambda: train(tmp_path, config(max_train_steps=5)))) == 0
    assert saved_steps(tmp_path) == [4, 5]
    assert wait(fork(lambda: train(tmp_path, config(max_train_steps=7)))) == 0
    assert saved_steps(tmp_path) == [4, 5, 7]


def test_a_folder_with_a_file_named_keep_outlives_rotation(tmp_path):
    def pin(run: Run) -> None:
        if run.step == 4:
            (run.directory / "checkpoints" / "step-00000004" / "keep").touch()

    assert wait(fork(lambda: train(tmp_path, config(checkpointing_steps=2, checkpoints_total_limit=2), pin))) == 0
    assert saved_steps(tmp_path) == [4, 10, 12]


def test_an_exception_saves_nothing_and_frees_the_directory(tmp_path):
    def fail(run: Run) -> None:
        if run.step == 6:
            raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        in_child(lambda: train(tmp_path, config(), fail))
    assert saved_steps(tmp_path) == [4]
    assert wait(fork(lambda: train(tmp_path, config()))) == 0


# ---- refusals ------------------------------------------------------------------------------------------------------


def refusal(action: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        in_child(action)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files_of(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != ".lock"}


def test_another_config_family_or_model_is_refused_and_nothing_changes(undisturbed):
    before = files_of(undisturbed)
    said = refusal(lambda: train(undisturbed, config(seed=1, learning_rate=0.5)))
    assert (
        f"{undisturbed} was started with learning_rate 0.01 (now 0.5), seed 0 (now 1); resume with that config" in said
    )
    assert "holds a run of toy, not of cgan" in refusal(lambda: train(undisturbed, config(), family="cgan"))

    def other_parts() -> None:
        with Run(undisturbed, config(), "toy") as run:
            run.register("generator", nn.Linear(1, 1))
            run.resume()

    assert "belongs to another model: only one of the two has critic, ema, optimizer_d, optimizer_g" in refusal(
        other_parts
    )

    def other_shape() -> None:
        with Run(undisturbed, config(), "toy") as run:
            for name in ("critic", "ema", "generator", "optimizer_d", "optimizer_g"):
                run.register(name, nn.Linear(1, 1))
            run.resume()

    assert "checkpoint of another model: generator" in refusal(other_shape)
    assert files_of(undisturbed) == before


def test_places_that_cannot_be_a_run(tmp_path):
    (tmp_path / "file").write_text("x")
    assert "cannot be written" in refusal(lambda: train(tmp_path / "file", config()))
    (tmp_path / "config.yaml").write_text("mine: true\n")
    assert "holds a config.yaml but is not a run" in refusal(lambda: train(tmp_path, config()))
    assert (tmp_path / "config.yaml").read_text() == "mine: true\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_cuda_asked_for_and_absent(tmp_path):
    said = refusal(lambda: train(tmp_path / "run", config(device="cuda")))
    assert "device=cuda was requested" in said and "--set device=cpu" in said
    assert not (tmp_path / "run").exists()


def test_fp16_and_a_limit_of_one_are_not_offered():
    for key, value in {"mixed_precision": "fp16", "checkpoints_total_limit": 1, "max_train_steps": 0}.items():
        with pytest.raises(ValidationError, match=key):
            config(**{key: value})


def test_launches_that_would_hang_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        InputError, match="RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set.*torchrun --nproc_per_node 2"
    ):
        check_launch("cgan", None)
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    check_launch("cgan", None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"2 processes for 1 GPU"):
        check_launch("cgan", 1)
    for lie in ("two", "0", "-1", ""):
        monkeypatch.setenv("WORLD_SIZE", lie)
        with pytest.raises(InputError, match="not a number of processes"):
            check_launch("cgan", None)


def test_parts_that_cannot_be_saved_are_refused(tmp_path):
    def odd_part() -> None:
        with Run(tmp_path, config(), "toy") as run:
            run.register("model", nn.Linear(1, 1))
            with pytest.raises(ValueError, match="registered twice"):
                run.register("model", nn.Linear(1, 1))
            with pytest.raises(TypeError, match="'thing' is a dict"):
                run.register("thing", {})  # pyright: ignore[reportArgumentType]

    in_child(odd_part)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_never_reaches_a_checkpoint(tmp_path, value):
    def poison(run: Run) -> None:
        if run.step == 6:
            part: Any = run.parts._parts["optimizer_d"]
            part.param_groups[0]["params"][0].data[0, 0, 0, 3] = value

    with_a_checkpoint = tmp_path / "one"
    assert wait(fork(lambda: train(with_a_checkpoint, config(), poison))) == 0
    assert rolled_back(with_a_checkpoint) == [(8, 4.0)] and saved_steps(with_a_checkpoint) == [4, 8, 12]
    said = refusal(lambda: train(tmp_path / "none", config(checkpointing_steps=8), poison))
    assert "step 8: 0.weight of critic is not finite, so no checkpoint was saved" in said
    assert saved_steps(tmp_path / "none") == []


# ---- one writer ----------------------------------------------------------------------------------------------------


def test_of_many_starters_exactly_one_gets_the_directory(tmp_path):
    for trial in range(5):
        gate, go = os.pipe()
        stay, leave = os.pipe()

        def start(gate: int = gate, go: int = go, stay: int = stay, leave: int = leave, trial: int = trial) -> None:
            os.close(go)
            os.close(leave)
            os.read(gate, 1)
            try:
                DirectoryLock(tmp_path)
            except InputError as error:
                assert "is being written by" in str(error) and "\n" not in str(error)
                raise SystemExit(2) from error
            (tmp_path / f"won-{trial}-{os.getpid()}").touch()
            os.read(stay, 1)

        pids = [fork(start) for _ in range(4)]
        os.close(go)
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob(f"won-{trial}-*")) and time.monotonic() < deadline:
            time.sleep(0.002)
        winner = int(next(tmp_path.glob(f"won-{trial}-*")).name.rpartition("-")[2])
        assert [wait(pid) for pid in pids if pid != winner] == [2, 2, 2]
        os.close(leave)
        assert wait(winner) == 0
        os.close(gate)
        os.close(stay)


def test_a_second_starter_is_told_who_writes(tmp_path):
    lock = DirectoryLock(tmp_path)
    said = refusal(lambda: train(tmp_path, config()))
    assert f"{tmp_path} is being written by pid {os.getpid()} on host {socket.gethostname()} since 20" in said
    lock.release()
    assert wait(fork(lambda: train(tmp_path, config(max_train_steps=1)))) == 0


def test_the_lock_of_a_killed_owner_is_taken_over_though_its_child_lives(tmp_path):
    def own() -> None:
        DirectoryLock(tmp_path)
        child = fork(lambda: time.sleep(60))
        (tmp_path / "child").write_text(str(child))
        os.rename(tmp_path / "child", tmp_path / "ready")
        time.sleep(60)

    owner = fork(own)
    deadline = time.monotonic() + 30
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    with pytest.raises(InputError, match=f"pid {owner} "):
        DirectoryLock(tmp_path)
    os.kill(owner, signal.SIGKILL)
    assert wait(owner) == -signal.SIGKILL
    child = int((tmp_path / "ready").read_text())
    os.kill(child, 0)  # it lives
    DirectoryLock(tmp_path).release()
    os.kill(child, signal.SIGKILL)


# ---- signals -------------------------------------------------------------------------------------------------------


def wait_for_step(directory: Path, step: int) -> None:
    deadline = time.monotonic() + 60
    while not any(record["step"] >= step for record in journal.read(directory / "journal.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


ENDLESS = {"max_train_steps": 1_000_000, "checkpointing_steps": 1_000_000, "log_steps": 1}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_saves_within_a_step_and_the_run_goes_on(tmp_path, number):
    pid = fork(lambda: train(tmp_path, config(**ENDLESS), lambda run: time.sleep(0.15)))
    wait_for_step(tmp_path, 2)
    before = journal.read(tmp_path / "journal.jsonl")[-1]["step"]
    os.kill(pid, number)
    time.sleep(0.05)
    os.kill(pid, number)  # a launcher passes on what the terminal sent to all: one and the same stop
    assert wait(pid) == RESUME_ME
    (step,) = saved_steps(tmp_path)
    stopped = (tmp_path / "STOPPED").read_text()
    assert stopped == f"signal {number.name} at step {step}; checkpoint of step {step}; the same command resumes\n"
    assert before <= step <= before + 3
    first: list[int] = []

    def stop_early(run: Run) -> None:
        first.append(run.step)
        if len(first) == 2:
            assert first[0] == step + 1
            os.kill(os.getpid(), signal.SIGTERM)

    assert wait(fork(lambda: train(tmp_path, config(**ENDLESS), stop_early))) == RESUME_ME
    assert saved_steps(tmp_path) == [step, step + 2]


def test_a_stopped_run_ends_with_the_same_bits(undisturbed, tmp_path):
    def stop(run: Run) -> None:
        if run.step in (2, 7):
            os.kill(os.getpid(), signal.SIGTERM)

    assert [wait(fork(lambda: train(tmp_path, config(), stop))) for _ in range(3)] == [RESUME_ME, RESUME_ME, 0]
    assert digests(tmp_path, 12) == digests(undisturbed, 12)


def test_a_second_signal_ends_a_step_that_hangs(tmp_path):
    def hang(run: Run) -> None:
        if run.step == 2:
            time.sleep(60)

    pid = fork(lambda: train(tmp_path, config(**ENDLESS), hang))
    wait_for_step(tmp_path, 2)
    os.kill(pid, signal.SIGTERM)
    time.sleep(StopSignals.SAME_SECONDS + 0.3)
    started = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    assert wait(pid) == 128 + signal.SIGTERM and time.monotonic() - started < 2


def test_a_worker_whose_launcher_dies_saves_and_ends(tmp_path):
    def worker() -> None:
        (tmp_path / "pid").write_text(str(os.getpid()))
        train(tmp_path / "run", config(**ENDLESS), lambda run: time.sleep(0.02))

    def launcher() -> None:
        os.environ["TORCHELASTIC_RUN_ID"] = "none"
        fork(worker)
        time.sleep(60)

    pid = fork(launcher)
    wait_for_step(tmp_path / "run", 3)
    assert not saved_steps(tmp_path / "run")
    os.kill(pid, signal.SIGKILL)
    wait(pid)
    orphan = Path("/proc") / (tmp_path / "pid").read_text()
    deadline = time.monotonic() + 30
    while orphan.exists() and "Z" not in (orphan / "stat").read_text().split()[2] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(saved_steps(tmp_path / "run")) == 1 and time.monotonic() < deadline


def test_handlers_are_given_back(tmp_path):
    def look() -> None:
        before = [signal.getsignal(number) for number in StopSignals.SIGNALS]
        train(tmp_path, config(max_train_steps=1))
        assert before == [signal.getsignal(number) for number in StopSignals.SIGNALS]

    in_child(look)


# ---- two processes -------------------------------------------------------------------------------------------------


def test_two_processes_agree_stop_together_and_resume_exactly(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert two_processes(lambda rank: train(whole, config(max_train_steps=9))) == [0, 0]
    assert saved_steps(whole) == [4, 8, 9]

    def signal_one_rank(run: Run) -> None:
        if run.step == 6 and run.process_index == 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    cfg = config(max_train_steps=9)
    assert two_processes(lambda rank: train(stopped, cfg, signal_one_rank)) == [RESUME_ME, RESUME_ME]
    assert saved_steps(stopped) == [4, 6]
    assert two_processes(lambda rank: train(stopped, cfg)) == [0, 0]
    assert digests(stopped, 9) == digests(whole, 9)
    _, manifest = checkpoint.load(stopped / "checkpoints" / "step-00000009")
    assert manifest["images_seen"] == 9 * 16 and manifest["num_processes"] == 2
    # and one process goes on from there
    assert wait(fork(lambda: train(stopped, config(max_train_steps=10)))) == 0
    assert saved_steps(stopped)[-1] == 10


def test_one_bad_rank_counts_for_all_and_means_are_over_ranks(tmp_path):
    def body(rank: int) -> None:
        with Run(tmp_path, config(log_steps=1, max_train_steps=1), "toy") as run:
            assert (run.num_processes, run.process_index, run.is_main) == (2, rank, rank == 0)
            assert (run.journal is not None) == run.is_main
            run.resume()
            good, bad = torch.ones(3), torch.tensor([1.0, math.nan])
            assert run.judge(good, good)
            assert not run.judge(good, bad if rank == 1 else good)
            assert not run.judge(torch.tensor(math.inf if rank == 0 else 0.0))
            loader = iter([SimpleNamespace(sample_ids=np.arange(8))])
            for batches in run.steps(loader):
                if list(batches):
                    run.note({"loss": torch.tensor(1.0 + 2 * rank), "rate": 0.5})

    assert two_processes(body) == [0, 0]
    (record,) = journal.read(tmp_path / "journal.jsonl")
    assert record["loss"] == 2.0 and record["rate"] == 0.5


def test_what_is_wrong_on_one_rank_ends_all(tmp_path):
    def different(rank: int) -> None:
        with pytest.raises(InputError, match="the processes of this run have different configs"):
            Run(tmp_path / "a", config(seed=rank), "toy")

    def locked(rank: int) -> None:
        with pytest.raises(InputError, match="is being written by"):
            Run(tmp_path, config(), "toy")

    def full(rank: int) -> None:
        def unwritable(run: Run) -> None:
            if run.step == 2 and run.is_main:
                (run.directory / "checkpoints").write_text("in the way")

        with pytest.raises(InputError, match="cannot write checkpoint"):
            train(tmp_path / "b", config(), unwritable)

    assert two_processes(different) == [0, 0] and not (tmp_path / "a").exists()
    lock = DirectoryLock(tmp_path)
    assert two_processes(locked) == [0, 0]
    lock.release()
    assert two_processes(full) == [0, 0]


# ---- time budget ---------------------------------------------------------------------------------------------------


class Clock:
    """Replaces the module `time`; changes only when it is set."""

    strftime = staticmethod(time.strftime)

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def steps_of(
    monkeypatch, seconds: float, durations: Callable[[int], float], mean_cost: float = 1.0, most: int = 100_000
) -> tuple[int, int]:
    """Returns (steps that fit, the step at which that was known) if step k takes durations(k)."""
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    budget = Budget(seconds, mean_cost)
    for step in range(most):
        total = budget.steps_that_fit(step)
        if total is not None:
            return total, step
        clock.now += durations(step)
    raise AssertionError("never known")


def test_steps_that_fit_a_time(monkeypatch):
    assert steps_of(monkeypatch, 60, lambda _: 0.1) == (pytest.approx(600, abs=1), 17)
    slow_start = steps_of(monkeypatch, 60, lambda step: 5.0 if step == 0 else 0.1)
    assert 548 <= slow_start[0] <= 552
    validated = steps_of(monkeypatch, 60, lambda step: 8.0 if step == 9 else 0.1)
    assert 515 <= validated[0] <= 525
    lazy_penalty = steps_of(monkeypatch, 600, lambda step: 0.4 if step % 4 == 0 else 0.1)
    assert lazy_penalty[0] == pytest.approx(600 / 0.175, rel=0.03)
    slower_later = steps_of(monkeypatch, 600, lambda step: 0.1, mean_cost=2.0)
    assert slower_later[0] == pytest.approx(3000, rel=0.03)
    assert steps_of(monkeypatch, 60, lambda _: 100.0) == (1, 1)
    assert steps_of(monkeypatch, 3600, lambda _: 0.05)[1] == pytest.approx(0.02 * 3600 / 0.05, abs=20)


def test_the_number_of_steps_is_fixed_once_and_resumed(tmp_path):
    """The second half runs at a third of the speed and ends at the same step, with the same learning rates."""
    cfg = config(max_train_steps=100_000, max_train_minutes=10)

    def timed(cfg: Config, seconds: float, last: int = -1) -> int:
        def body() -> None:
            clock = Clock()
            setattr(timing, "time", clock)  # noqa: B010

            def each_step(run: Run) -> None:
                clock.now += seconds
                kill_at(last)(run)

            train(tmp_path, cfg, each_step)

        return wait(fork(body))

    assert timed(cfg, 10, last=10) == -signal.SIGKILL  # before the number is known
    spent = checkpoint.load(tmp_path / "checkpoints" / "step-00000008")[1]["train_seconds"]  # real ones
    most = 8 + (60 * 10 - spent) / 10
    assert timed(cfg, 10, last=45) == -signal.SIGKILL
    _, manifest = checkpoint.load(tmp_path / "checkpoints" / "step-00000044")
    assert manifest["total_steps"] == pytest.approx(most, abs=2)
    assert timed(cfg, 30) == 0
    assert saved_steps(tmp_path)[-1] == manifest["total_steps"]
    assert timed(config(max_train_steps=70), 10) == 0
    assert saved_steps(tmp_path)[-1] == 70


# ---- parts ---------------------------------------------------------------------------------------------------------


def test_learning_rate_is_warm_up_then_cosine():
    rates = [learning_rate(step, 110, 2.0, 10, 0.1) for step in range(130)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == 2.0 and rates[60] == pytest.approx(1.1) and rates[110:] == [pytest.approx(0.2)] * 20
    assert learning_rate(0, 1, 1.0, 0) == 1.0 and learning_rate(5, 5, 1.0, 0) == 0.0


def test_ema_follows_the_half_life_and_its_ramp():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))
    nn.init.zeros_(model[0].weight)
    average = EMA(model, halflife_images=100, ramp=0.5)
    assert not average.module.training and not any(p.requires_grad for p in average.module.parameters())
    nn.init.ones_(model[0].weight)
    model[1].running_mean.fill_(4.0)
    model[1].num_batches_tracked.fill_(7)
    average.update(model, images_this_step=20, images_seen=80)  # half-life 40: weighs 2**-0.5
    first = average.module.state_dict()
    torch.testing.assert_close(first["0.weight"], torch.full((2, 2), 1 - 0.5**0.5))
    torch.testing.assert_close(first["1.running_mean"], torch.full((2,), 4 * (1 - 0.5**0.5)))
    assert first["1.num_batches_tracked"] == 7
    average.update(model, images_this_step=100, images_seen=10_000)  # half-life 100
    torch.testing.assert_close(average.module.state_dict()["0.weight"], torch.full((2, 2), 1 - 0.5**1.5))
    other = EMA(nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2)), 100)
    other.load_tensors(average.state_tensors())
    assert all(torch.equal(a, b) for a, b in zip(other.module.parameters(), average.module.parameters(), strict=True))
    with pytest.raises(InputError, match="checkpoint of another model: ema has no tensor"):
        EMA(nn.Linear(2, 2), 100).load_tensors({})


def test_the_guard_counts_and_gives_up_after_ten_in_a_row():
    guard = NonFiniteGuard()
    for step in range(9):
        assert guard.check(False, step, [step]) is False
    assert guard.check(True, 9, [9]) is True
    for step in range(10, 19):
        guard.check(False, step, [step])
    with pytest.raises(
        InputError, match=r"10 steps in a row, 10 to 19 with samples 10, 11, .*, 17, \.\.\.; check these"
    ):
        guard.check(False, 19, [190, 191])
    assert guard.skipped == 19


def weights(directory: Path, step: int) -> dict[str, torch.Tensor]:
    return checkpoint.load(directory / "checkpoints" / f"step-{step:08d}")[0]["generator"]


def rolled_back(directory: Path) -> list[tuple[int, float]]:
    records = journal.read(directory / "journal.jsonl")
    return [(r["step"], r["rolled_back_to"]) for r in records if "rolled_back_to" in r]


def test_steps_that_stay_broken_go_back_once_to_the_last_sound_checkpoint(tmp_path):
    """Steps 5 to 8 are broken, and the checkpoints of 6 and 8 are among them."""
    drift = []

    def body() -> list[bool]:
        def each_step(run: Run) -> None:
            if run.step in (
                5,
                6,
            ):  # the step before and the first broken one spoil the weights without a trace in the loss
                for tensor in run.parts.state()["generator"].values():
                    tensor.add_(1.0)
            if run.step == 8:
                saved = weights(tmp_path, 4)
                drift.append(all(torch.equal(saved[k], v) for k, v in run.parts.state()["generator"].items()))

        cfg = config(checkpointing_steps=2, checkpoints_total_limit=2)
        with pytest.warns(
            UserWarning,
            match="step 7: losses or gradients are no longer finite; continuing once with the weights of step 4",
        ):
            train(tmp_path, cfg, each_step, spoilt=lambda step: step in (5, 6, 7))
        return drift

    assert in_child(body) == [True]
    assert rolled_back(tmp_path) == [(7, 4.0)]
    assert saved_steps(tmp_path)[-1] == 12
    assert checkpoint.load(tmp_path / "checkpoints" / "step-00000012")[1]["rolled_back"] is True


def test_a_run_that_going_back_does_not_help_stops_and_names_the_samples(tmp_path):
    said = refusal(lambda: train(tmp_path, config(), spoilt=lambda step: step >= 5))
    assert (
        "not finite in 3 steps in a row, 8 to 10 with samples 64, 65, 66, 67, 68, 69, 70, 71, ...; check these" in said
    )
    assert rolled_back(tmp_path) == [(7, 4.0)] and saved_steps(tmp_path) == [4, 8]
    said = refusal(lambda: train(tmp_path, config(), spoilt=lambda step: step >= 5))  # nor does starting it again
    assert "8 to 10 with samples 64, 65" in said and rolled_back(tmp_path) == [(7, 4.0)]


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(tmp_path):
    said = refusal(lambda: train(tmp_path, config(), spoilt=lambda step: True))
    assert "3 steps in a row, 0 to 2 with samples 0, 1" in said and saved_steps(tmp_path) == []


def test_a_run_killed_between_going_back_and_saving_ends_with_the_same_bits(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    spoilt = {"spoilt": lambda step: step in (5, 6, 7), "limit": 3}
    assert wait(fork(lambda: train(whole, config(checkpointing_steps=5), **spoilt))) == 0
    assert wait(fork(lambda: train(killed, config(checkpointing_steps=5), kill_at(9), **spoilt))) == -signal.SIGKILL
    assert wait(fork(lambda: train(killed, config(checkpointing_steps=5), **spoilt))) == 0
    assert digests(killed, 12) == digests(whole, 12)


def test_two_processes_go_back_together(tmp_path):
    cfg = config(max_train_steps=9)
    assert two_processes(lambda rank: train(tmp_path, cfg, spoilt=lambda step: step in (5, 6, 7))) == [0, 0]
    assert rolled_back(tmp_path) == [(7, 4.0)]
    _, manifest = checkpoint.load(tmp_path / "checkpoints" / "step-00000009")
    assert manifest["images_seen"] == 9 * 16


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mixed_precision": "bf16"}, "mixed_precision bf16 (was no)"),
        ({"compile": True}, "compile True (was False)"),
        ({"dataloader_num_workers": 1}, None),
        ({"device": "auto"}, None),
    ],
)
def test_what_only_rounds_otherwise_may_change_and_is_told(tmp_path, changes, said):
    def resumed(cfg: Config) -> list[str]:
        os.environ["ACCELERATE_USE_CPU"] = "1"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(tmp_path, cfg)
        return [str(item.message) for item in caught if "resumed" in str(item.message)]

    exact = {"mixed_precision": "no", "max_train_steps": 2}
    assert in_child(lambda: resumed(config(**exact))) == []
    told = in_child(lambda: resumed(config(**exact | {"max_train_steps": 3} | changes)))
    assert saved_steps(tmp_path) == [2, 3]
    assert len(told) == (said is not None) and all(
        said in one and "bit for bit" in one and "\n" not in one for one in told
    )


def test_journal_survives_torn_lines_and_truncates(tmp_path):
    path = tmp_path / "journal.jsonl"
    assert journal.read(path) == []
    tracked = []
    first = journal.Journal(path, 10, track=lambda scalars, step: tracked.append((step, scalars)))
    for step in (1, 2, 3):
        first.write(step, {"loss": 1 / step, "bad": math.nan})
    first.close()
    assert tracked[0][0] == 1 and tracked[0][1]["loss"] == 1.0
    with open(path, "ab") as file:
        file.write(b'{"step": 4, "lo')
    assert [record["step"] for record in journal.read(path)] == [1, 2, 3]
    again = journal.Journal(path, 10)
    again.write(5, {"loss": 0.125})
    again.truncate(9)
    assert [record["step"] for record in journal.read(path)] == [1, 2, 3, 5]
    again.truncate(2)
    again.write(3, {"loss": 3.0})
    again.close()
    records = journal.read(path)
    assert [(record["step"], record["loss"], record.get("bad")) for record in records] == [
        (1, 1.0, None),
        (2, 0.5, None),
        (3, 3.0, None),
    ]
    assert all(isinstance(record["time"], float) for record in records)


LONG = {"d_real": 0.123456, "d_fake": -3.9e-05, "r1": 4.9e-09, "d_loss": 1.00712, "g_loss": 0.25, "learning_rate": 1e-4}


def shown_on(columns: int, tmp_path: Path) -> str:
    """Returns the output of a terminal with so many columns, without control sequences."""
    terminal, stderr = pty.openpty()

    def on_terminal() -> None:
        os.dup2(stderr, 2)
        os.environ |= {"COLUMNS": str(columns), "TERM": "xterm"}
        sys.stderr = open(2, "w", closefd=False)
        log = journal.Journal(tmp_path / "journal.jsonl", 20_000)
        for step in (50, 100):
            log.write(step, LONG | {"images_per_second": 123.4, "data_wait": 0.1})
            log.show(step)
        log.close()

    pid = fork(on_terminal)
    os.close(stderr)
    seen = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while data := os.read(terminal, 65536):
            seen += data
    os.close(terminal)
    assert wait(pid) == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode())


@pytest.mark.parametrize("columns", [80, 100, 160])
def test_the_bar_and_its_scalars_are_whole_on_a_terminal(tmp_path: Path, columns: int) -> None:
    rows = [row for row in shown_on(columns, tmp_path).replace("\r", "\n").split("\n") if row.strip()]
    bar, scalars = rows[-2:]
    assert "100 of 20,000 steps" in bar and "left" in bar and "\u2501" in bar and "…" not in bar
    assert scalars.startswith("at 100:  d_loss 1.01  g_loss 0.25") and "123 images/s" in scalars and "…" not in scalars
    assert all(len(row) <= columns for row in rows) and "learning_rate" not in scalars


def test_a_pipe_gets_a_line_at_once_and_no_number_twice(tmp_path: Path, capfd) -> None:
    def show() -> None:
        log = journal.Journal(tmp_path / "journal.jsonl", 50, seconds=0.0)
        log.write(1, {"loss": 0.5}, store=False)
        for step in (1, 10, 11, 50):
            if step in (10, 50):
                log.write(step, {"loss": 1 / step, "images_per_second": 123.4})
            log.show(step)
        log.close()

    assert wait(fork(show)) == 0
    lines = capfd.readouterr().err.splitlines()
    assert [line.rpartition("  ")[0] for line in lines[1:]] == [
        "step 10 of 50  loss 0.1  123 images/s",
        "step 11 of 50",
        "step 50 of 50  loss 0.02  123 images/s",
    ]
    assert lines[0] == "step 1 of 50  loss 0.5" and lines[1].endswith(" s left")
    assert [record["step"] for record in journal.read(tmp_path / "journal.jsonl")] == [10, 50]


def test_a_run_says_what_it_trains_where_it_is_and_what_comes_next(tmp_path: Path, capfd) -> None:
    assert wait(fork(lambda: train(tmp_path / "run", config(max_train_steps=5)))) == 0
    said = capfd.readouterr().err
    lines = said.splitlines()
    assert lines[0].startswith("device: CPU, 1 thread (") and lines[0].endswith(("fp32", "bf16"))
    assert lines[1] == "data: 50 images, 50 captions; 8 images per step"
    assert lines[2].startswith("parameters: generator ") and ", critic " in lines[2]
    assert lines[3] == f"run: {tmp_path / 'run'}, step 0 of 5; next checkpoint at 4 or after 10 min"
    assert lines[4].startswith("step 1 of 5  loss ")
    assert wait(fork(lambda: train(tmp_path / "run", config(max_train_steps=5)))) == 0
    again = capfd.readouterr().err
    assert again == f"run {tmp_path / 'run'} is finished: 5 steps done; set a higher max_train_steps to continue\n"


def test_a_run_whose_terminal_hangs_up_is_saved(tmp_path: Path) -> None:
    terminal, stderr = pty.openpty()

    def on_terminal() -> None:
        os.setsid()
        os.dup2(stderr, 2)
        os.close(terminal)
        sys.stderr = open(2, "w", closefd=False)
        train(tmp_path, config(**ENDLESS), lambda run: time.sleep(0.05))

    pid = fork(on_terminal)
    os.close(stderr)
    os.set_blocking(terminal, False)
    deadline = time.monotonic() + 60
    while not any(record["step"] >= 2 for record in journal.read(tmp_path / "journal.jsonl")):
        assert time.monotonic() < deadline
        with contextlib.suppress(BlockingIOError):
            os.read(terminal, 65536)
        time.sleep(0.01)
    os.close(terminal)  # from here on every word to it fails
    time.sleep(0.5)
    os.kill(pid, signal.SIGHUP)
    assert wait(pid) == RESUME_ME and len(saved_steps(tmp_path)) == 1


def test_a_users_number_of_threads_stands():
    def with_users_number() -> None:
        os.environ["OMP_NUM_THREADS"] = "1"
        before = torch.get_num_threads()
        assert prepare_cpu() == before

    in_child(with_users_number)


class Machine:
    """Replaces psutil: the load of each core in each window, and the time of this job."""

    def __init__(self, monkeypatch, busy: list[list[float]], own: float = 0.0, quota: int = 99):
        self.busy, self.own, self.windows = busy, own, 0
        cores = len(busy[0])
        monkeypatch.setattr(hardware, "allowed_cores", lambda: set(range(cores)))
        monkeypatch.setattr(hardware, "_quota", lambda most: min(most, quota))
        monkeypatch.setattr(hardware, "_idle_seconds", self.idle_seconds)
        monkeypatch.setattr(hardware, "_job_seconds", lambda: 0.2 * self.own * self.windows)
        monkeypatch.setattr(hardware.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.windows += 1

    def idle_seconds(self, cores: set[int]) -> dict[int, tuple[float, float]]:
        used = [0.2 * sum(column) for column in zip(*self.busy[: self.windows], strict=True)] or [0.0] * len(cores)
        return {core: (0.2 * self.windows - used[core], 0.2 * self.windows) for core in cores}


def test_a_neighbour_that_computes_all_the_time_is_seen_and_a_momentary_one_is_not(monkeypatch):
    assert 1 <= free_cores(1, 0.05) <= len(os.sched_getaffinity(0))
    Machine(monkeypatch, [[1.0, 0.1, 0.0, 1.0]] * 5)
    assert free_cores() == 2
    Machine(monkeypatch, [[1.0, 1.0]] * 5)
    assert free_cores() == 1
    momentary = Machine(monkeypatch, [[1.0, 1.0], [1.0, 0.9], [0.1, 0.0], [1.0, 1.0], [1.0, 1.0]])
    assert free_cores() == 2 and momentary.windows == 3  # all are free: it need not look longer
    Machine(monkeypatch, [[0.0, 0.0]] * 5, quota=1)
    assert free_cores() == 1
    assert hardware.WINDOWS * hardware.WINDOW_SECONDS <= 1.0


def test_work_of_the_job_itself_is_no_neighbours(monkeypatch):
    Machine(monkeypatch, [[1.0, 1.0]] * 5, own=2.0)  # both processes of a job are importing torch
    assert free_cores() == 2
    Machine(monkeypatch, [[1.0, 1.0]] * 5, own=1.0)
    assert free_cores() == 1
    monkeypatch.undo()
    before = hardware._job_seconds()
    deadline = time.process_time() + 0.1
    while time.process_time() < deadline:
        pass
    assert 0.05 <= hardware._job_seconds() - before <= 1.0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    sibling = fork(lambda: sum(range(10_000_000)))
    assert (
        wait(sibling) == 0 and hardware._job_seconds() >= before
    )  # it is not this process's sibling but its child: not counted
