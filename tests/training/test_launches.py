"""Several processes: wrong launches are refused; if a process is killed, stopped or hangs, the others end."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders.forks import fork, in_child, wait
from builders.toy_run import config, digests, free_port, saved_steps, train, two_processes, warm_up
from t2i.errors import InputError
from t2i.training import accelerator
from t2i.training.accelerator import check_launch
from t2i.training.run import RESUME_ME, Run
from t2i.training.stopping import signals, watchdog

ENDLESS = {"max_train_steps": 1_000_000, "checkpointing_steps": 3, "log_steps": 1}


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    warm_up()


@pytest.fixture
def soon(monkeypatch) -> None:
    """Lets the watchdog react after two seconds instead of thirty."""
    monkeypatch.setattr(watchdog, "SILENT_SECONDS", 2.0)
    monkeypatch.setattr(watchdog, "HUNG_SECONDS", 2.0)
    monkeypatch.setattr(watchdog, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(watchdog, "HUNG_STEPS", 2)


def ends(tmp_path: Path, each_step: Callable[[Run], None], **settings: Any) -> tuple[list[int], float]:
    """Returns the exit statuses of two processes, and the seconds since the fault."""
    began = tmp_path / "began"

    def faulty(run: Run) -> None:
        if run.step == 7 and run.process_index == 1:
            began.touch()
        each_step(run)

    found = two_processes(lambda rank: train(tmp_path / "run", config(**ENDLESS | settings), faulty))
    return found, time.time() - began.stat().st_mtime


# ---- a process that does not answer ---------------------------------------------------------------------------------


def test_a_stopped_process_ends_the_job_and_is_named(tmp_path: Path, soon, capfd) -> None:
    def stop(run: Run) -> None:
        if run.step == 7 and run.process_index == 1:
            os.kill(os.getpid(), signal.SIGSTOP)

    found, seconds = ends(tmp_path, stop)
    assert found == [RESUME_ME, -signal.SIGKILL] and seconds < 20
    said = capfd.readouterr().err
    assert "rank 1 (pid" in said and "is stopped (by a signal)" in said and "Traceback" not in said
    assert "is stopped" in (tmp_path / "run" / "STOPPED").read_text() and saved_steps(tmp_path / "run") == [3, 6]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_hangs_in_a_step_ends_the_job_and_is_named(tmp_path: Path, soon, capfd, rank: int) -> None:
    def hang(run: Run) -> None:
        if run.step == 7 and run.process_index == rank:
            time.sleep(3600)

    found, seconds = ends(tmp_path, hang)
    assert found[1 - rank] == RESUME_ME and found[rank] == -signal.SIGKILL and seconds < 20
    said = capfd.readouterr().err
    assert f"rank {rank} (pid" in said and "has hung for" in said and "test_launches.py line" in said


def test_a_killed_process_ends_the_job_without_a_traceback(tmp_path: Path, soon, capfd) -> None:
    def die(run: Run) -> None:
        if run.step == 7 and run.process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    found, seconds = ends(tmp_path, die)
    assert found == [RESUME_ME, -signal.SIGKILL] and seconds < 20
    said = capfd.readouterr().err
    assert "has died" in said and "Traceback" not in said
    assert two_processes(lambda rank: train(tmp_path / "run", config(**ENDLESS | {"max_train_steps": 7}))) == [0, 0]


def test_what_takes_long_is_no_hang(tmp_path: Path, soon) -> None:
    """The first steps of one process, a validation on the main one, its preparation, and a stop of the whole job."""

    def slow(run: Run) -> None:
        if run.step == 2 and run.process_index == 1:
            time.sleep(4)  # compiles
        if run.step == 6:
            run.on_main(lambda: time.sleep(4))  # validates
        if run.step == 7:
            run.ranks.each(lambda: time.sleep(3 * run.process_index))  # encodes its share

    cfg = config(max_train_steps=9)
    assert two_processes(lambda rank: train(tmp_path / "run", cfg, slow)) == [0, 0]
    pids = tmp_path / "pids"
    pids.mkdir()

    def write_pid(run: Run) -> None:
        (pids / str(os.getpid())).touch()
        time.sleep(0.1)

    def pause() -> None:
        while len(list(pids.iterdir())) < 2:
            time.sleep(0.05)
        time.sleep(1)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for path in pids.iterdir():
                os.kill(int(path.name), number)
            time.sleep(5 if number == signal.SIGSTOP else 0)

    pauser = fork(pause)
    cfg = config(max_train_steps=40)
    assert two_processes(lambda rank: train(tmp_path / "paused", cfg, write_pid)) == [0, 0]
    assert wait(pauser) == 0


# ---- launches -------------------------------------------------------------------------------------------------------


def refusal(action: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        in_child(action)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, "OMPI_COMM_WORLD_SIZE is 2.*--nproc_per_node 2"),
        ({"PMI_SIZE": "4", "PMI_RANK": "1"}, "PMI_SIZE is 4.*--nproc_per_node 4"),
        ({"MV2_COMM_WORLD_SIZE": "3"}, "MV2_COMM_WORLD_SIZE is 3"),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}, "SLURM_STEP_NUM_TASKS is 8.*--nproc_per_node 8"),
        ({"RANK": "0", "LOCAL_RANK": "0"}, "RANK and LOCAL_RANK set but WORLD_SIZE, MASTER_ADDR, MASTER_PORT not set"),
        ({"LOCAL_RANK": "0"}, "not set; unset the former"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2, but must be 0 to 1 for 2 processes"),
        ({"WORLD_SIZE": "2", "RANK": "x"}, "RANK is 'x', not a number"),
        ({"WORLD_SIZE": "2", "MASTER_PORT": "http"}, "MASTER_PORT is 'http', not a number"),
    ],
)
def test_environments_of_other_launchers_are_refused(monkeypatch, variables: dict[str, str], words: str) -> None:
    if "WORLD_SIZE" in variables:
        for name in ("RANK", "LOCAL_RANK", "MASTER_PORT"):
            monkeypatch.setenv(name, "0")
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=words):
        check_launch("cgan", None)


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_other_ways_of_training_are_refused(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    assert f"ACCELERATE_USE_{name} is set" in refusal(lambda: train(tmp_path / "run", config()))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variables", "key"),
    [
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "gradient_accumulation_steps"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "mixed_precision"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "compile"),
        ({"OMPI_COMM_WORLD_SIZE": "1", "PMI_SIZE": "1", "ACCELERATE_DYNAMO_BACKEND": "NO"}, None),
    ],
)
def test_variables_of_the_environment_change_no_weight(tmp_path: Path, variables: dict[str, str], key) -> None:
    def with_them(directory: Path) -> list[str]:
        os.environ.update(variables)
        with pytest.warns() as caught:
            train(directory, config(max_train_steps=4, mixed_precision="no"))
            import warnings

            warnings.warn("none", stacklevel=1)
        assert all(os.environ[name] == value for name, value in variables.items())
        return [str(item.message) for item in caught if "is ignored" in str(item.message)]

    told = in_child(lambda: with_them(tmp_path / "with"))
    assert len(told) == (key is not None) and all(f"set {key}" in one for one in told)
    cfg = config(max_train_steps=4, mixed_precision="no")
    assert wait(fork(lambda: train(tmp_path / "without", cfg))) == 0
    assert digests(tmp_path / "with", 4) == digests(tmp_path / "without", 4)


def test_a_launcher_that_started_one_process_of_two_is_told(monkeypatch) -> None:
    words = [
        "python",
        "/usr/bin/accelerate",
        "launch",
        "--cpu",
        "--num_processes",
        "2",
        "-m",
        "t2i.cli",
        "train",
        "cgan",
    ]
    monkeypatch.setattr(accelerator, "accelerate_words", lambda: words)
    with pytest.raises(
        InputError, match="accelerate launch --num_processes 2` started one process.*torchrun --nproc_per_node 2"
    ):
        check_launch("cgan", None)
    monkeypatch.setattr(accelerator, "accelerate_words", lambda: [*words[:4], "--num_processes=1"])
    check_launch("cgan", None)


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ([0], "rank 1 of 2 did not connect to 127.0.0.1"),
        ([1], "rank 0 does not answer"),
        ([1, 1], "rank 0 does not answer"),
        ([0, 0], "rank 0 running already|did not connect"),
        ([0, 1, 1], "rank 1 was started twice"),
    ],
)
def test_missing_and_doubled_ranks_are_named(tmp_path: Path, monkeypatch, capfd, ranks: list[int], words: str) -> None:
    monkeypatch.setattr(accelerator, "ROLL_SECONDS", 3)
    port = free_port()

    def start(rank: int, number: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        try:
            accelerator.wait_for_all()
        except InputError as error:
            (tmp_path / str(number)).write_text(str(error))
            raise SystemExit(2) from error
        time.sleep(1)

    found = [wait(pid, 30) for pid in [fork(lambda r=rank, n=n: start(r, n)) for n, rank in enumerate(ranks)]]
    said = " | ".join(path.read_text() for path in sorted(tmp_path.iterdir()))
    assert found.count(2) >= (1 if ranks == [0, 1, 1] else len(ranks))
    assert any(word in said for word in words.split("|")) and "\n" not in said
    assert "frame #" not in capfd.readouterr().err


def test_accumulation_that_accelerate_was_asked_for_is_told(tmp_path: Path, monkeypatch) -> None:
    words = ["python", "/usr/bin/accelerate", "launch", "--cpu", "--gradient_accumulation_steps=4", "train.py"]
    monkeypatch.setattr(accelerator, "accelerate_words", lambda: words)
    with (
        pytest.warns(UserWarning, match="--gradient_accumulation_steps 4 of accelerate is ignored: the config decides"),
        accelerator._without_foreign_settings(config(), "no"),
    ):
        pass


def test_a_shell_that_exports_variables_is_no_launcher(monkeypatch) -> None:
    assert not signals.is_launched()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert not signals.is_launched()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert signals.is_launched()


def test_an_ignored_hang_up_stays_ignored(tmp_path: Path) -> None:
    def under_nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        train(tmp_path, config(max_train_steps=5), lambda run: os.kill(os.getpid(), signal.SIGHUP))

    assert wait(fork(under_nohup)) == 0 and saved_steps(tmp_path) == [4, 5]


def test_another_number_of_processes_is_told(tmp_path: Path) -> None:
    assert two_processes(lambda rank: train(tmp_path, config(max_train_steps=2))) == [0, 0]

    def alone() -> None:
        with pytest.warns(UserWarning, match="resumed on 1 process.*a step now sees 8 images, not 16; start 2"):
            train(tmp_path, config(max_train_steps=3))

    assert wait(fork(alone)) == 0


def test_a_gpu_that_only_emulates_bf16_has_none(monkeypatch) -> None:
    from t2i import hardware

    monkeypatch.setattr(hardware.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(hardware.torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not hardware.has_bf16("cuda") and not hardware.has_bf16("mps")
