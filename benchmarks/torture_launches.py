"""Tests with the real launchers that a launch starts the requested processes or is refused in one line.

python benchmarks/torture_launches.py              # 25 launches, some of which wait 45 seconds for a missing rank
python benchmarks/torture_launches.py torchrun     # launches whose names contain a word
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from builders.small_settings import SMALL, VQVAE  # noqa: E402
from builders.toy_run import free_port  # noqa: E402

SETS = [*SMALL, *VQVAE, "max_train_steps=2", "validation_steps=100"]
TORCHRUN = ("torch.distributed.run", "--nproc_per_node")
ACCELERATE = ("accelerate.commands.launch", "--num_machines", "1", "--dynamo_backend", "no")
ALIKE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Launch(NamedTuple):
    """A launch and its expected outcome.

    Attributes:
        launcher: words before `-m t2i.cli`.
        variables: environment variables of each process.
        processes: number of processes that train; 0: the launch is refused.
        says: words of the refusal, or of a warning.
    """

    launcher: tuple[str, ...] = ()
    variables: tuple[dict[str, str], ...] = ({},)
    processes: int = 1
    says: str = ""


def by_hand(*ranks: int) -> tuple[dict[str, str], ...]:
    own = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return tuple(own | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in ranks)


def launches() -> dict[str, Launch]:
    one = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return {
        "alone": Launch(),
        "torchrun 1": Launch((*TORCHRUN, "1")),
        "torchrun 2": Launch((*TORCHRUN, "2", "--master_port", free_port()), processes=2),
        "torchrun standalone 2": Launch((TORCHRUN[0], "--standalone", *TORCHRUN[1:], "2"), processes=2),
        "torchrun 2 with mpirun's variables": Launch(
            (*TORCHRUN, "2", "--master_port", free_port()), ({"OMPI_COMM_WORLD_SIZE": "2"},), 2
        ),
        "accelerate": Launch((*ACCELERATE, "--cpu", "--num_processes", "1")),
        "accelerate 2 on CPUs": Launch(
            (*ACCELERATE, "--cpu", "--num_processes", "2"), processes=0, says="started one process (on CPUs"
        ),
        "accelerate 2": Launch(
            (*ACCELERATE, "--multi_gpu", "--num_processes", "2", "--main_process_port", free_port()), processes=2
        ),
        "accelerate with accumulation": Launch(
            (*ACCELERATE, "--cpu", "--num_processes", "1", "--gradient_accumulation_steps", "4"), says="is ignored"
        ),
        "accelerate with a precision": Launch(
            (*ACCELERATE, "--cpu", "--num_processes", "1", "--mixed_precision", "bf16"), says="is ignored"
        ),
        "mpirun": Launch(
            (), ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},), 0, "OMPI_COMM_WORLD_SIZE is 2"
        ),
        "mpirun of MPICH": Launch((), ({"PMI_SIZE": "2", "PMI_RANK": "1"},), 0, "PMI_SIZE is 2"),
        "mpirun of one": Launch((), ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},)),
        "srun": Launch((), ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"},), 0, "SLURM_STEP_NUM_TASKS is 2"),
        "one by hand": Launch((), (one,)),
        "both by hand": Launch((), by_hand(0, 1), 2),
        "the first alone": Launch((), by_hand(0), 0, "rank 1 of 2 did not connect"),
        "the second alone": Launch((), by_hand(1), 0, "rank 0 does not answer"),
        "the first twice": Launch((), by_hand(0, 0), 0, "rank"),
        "the second twice": Launch((), by_hand(0, 1, 1), 2, "rank 1 was started twice"),
        "a rank without a world": Launch((), ({"RANK": "0", "LOCAL_RANK": "0"},), 0, "not set"),
        "a world of none": Launch((), ({"WORLD_SIZE": "0"},), 0, "WORLD_SIZE is '0'"),
        "a rank beyond": Launch((), (by_hand(2)[0],), 0, "RANK is 2, but must be"),
        "variables of a shell": Launch((), ({"ACCELERATE_MIXED_PRECISION": "bf16"},), says="is ignored"),
        "DeepSpeed": Launch((), ({"ACCELERATE_USE_DEEPSPEED": "true"},), 0, "ACCELERATE_USE_DEEPSPEED is set"),
    }


def launched(launch: Launch, folder: Path) -> str:
    """Starts a launch and returns its outcome."""
    sets = [word for value in SETS for word in ("--set", value)]
    train = ["train", "vqvae", "--config", "vqvae-tiny", "--data", "shapes-1", "--run-dir", str(folder / "run"), *sets]
    launcher = ["-m", *launch.launcher] if launch.launcher else []
    clean = {name: value for name, value in os.environ.items() if name not in ALIKE}
    clean |= {"OMP_NUM_THREADS": "1", "T2I_CACHE": str(folder / "cache"), "PYTHONWARNINGS": "default"}
    words = [sys.executable, *launcher, "-m", "t2i.cli", *train]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [subprocess.Popen(words, env=clean | its, **pipes) for its in launch.variables]  # pyright: ignore
    said = "".join(process.communicate(timeout=900)[0] for process in started)
    status = [process.returncode for process in started]
    papers = folder / "run" / "command.json"
    trained = json.loads(papers.read_text())["num_processes"] if papers.exists() else 0
    saved = (folder / "run" / "checkpoints" / "step-00000002" / "manifest.json").exists()
    ours = "Traceback" in said and "error: " not in said
    if ours or "frame #" in said or launch.says not in said:
        return f"NOT SAID {status} {said[-600:]!r}"
    if launch.processes and not (saved and trained == launch.processes and 0 in status):
        return f"NOT TRAINED {status}, {trained} processes: {said[-600:]!r}"
    if not launch.processes and (saved or not all(status)):
        return f"TRAINED {status}, {trained} processes: {said[-600:]!r}"
    return f"{trained} trained" if launch.processes else "refused in one line"


def main() -> int:
    bad = 0
    for name, launch in launches().items():
        if all(word in name for word in sys.argv[1:]):
            with tempfile.TemporaryDirectory(prefix="torture-") as folder:
                began = time.monotonic()
                found = launched(launch, Path(folder))
                bad += found.split()[0].isupper()
                print(f"P20 {name}: {found}, {time.monotonic() - began:.0f} s", flush=True)
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
