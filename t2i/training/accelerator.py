"""The Accelerator of a run: device, precision and processes. The only library file that knows Accelerate."""

import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from t2i.config.training import TrainConfig
from t2i.errors import InputError
from t2i.hardware import has_bf16
from t2i.training.stopping.signals import accelerate_words
from t2i.training.trackers import refuse_missing

ROLL_SECONDS, FAR_ROLL_SECONDS = 45, 600  # that a process waits for the others on one machine, on several


def make_accelerator(config: TrainConfig, directory: Path, family: str) -> Accelerator:
    """Returns the Accelerator that the config asks for, `auto` resolved.

    Raises:
        InputError: the device or the tracker is not there, or the processes were not started as they must be.
    """
    device = config.device
    forced_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = "cpu" if forced_cpu else next(name for name in usable if usable[name])
    if not usable[device]:
        raise InputError(
            f"device {device} was asked for, and torch {torch.__version__} finds none; install a torch built for it "
            "(`t2i doctor` tells) or say --set device=cpu"
        )
    check_launch(family, torch.cuda.device_count() if device == "cuda" else None)
    precision = config.mixed_precision
    if precision == "auto":
        precision = "bf16" if has_bf16(device) else "no"
    if precision == "bf16" and not has_bf16(device):
        warnings.warn(f"this {device.upper()} only emulates bf16, 2 to 4 times slower than fp32", stacklevel=3)
    refuse_missing(config.report_to)
    warnings.filterwarnings("ignore", message=".*`?broadcast_buffers`? is deprecated")  # Accelerate always passes it
    AcceleratorState._reset_state()  # or a second run of this process could not have another precision
    call_the_roll()
    with _without_others_settings(config, precision):
        accelerator = Accelerator(
            cpu=device == "cpu",
            mixed_precision=precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            log_with=None if config.report_to == "none" else config.report_to,
            project_dir=directory,
            # a player of a GAN runs several times before one backward: buffers written in between would break it
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
    if int(os.environ.get("WORLD_SIZE", 1)) != accelerator.num_processes:
        raise InputError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} and {accelerator.num_processes} process(es) found each other; "
            f"start with: torchrun --nproc_per_node {os.environ['WORLD_SIZE']} -m t2i.cli train {family} ..."
        )
    return accelerator


def check_launch(family: str, devices: int | None) -> None:
    """Refuses environments in which processes would wait for each other for ever, train apart, or share a GPU.

    Args:
        family: for the command in the message.
        devices: GPUs of this machine, None when training on the CPU.
    """
    alone = "WORLD_SIZE" not in os.environ
    world = os.environ.get("WORLD_SIZE", "1")
    if not world.isdecimal() or int(world) < 1:
        raise InputError(f"WORLD_SIZE is {world!r}, not a number of processes; unset it, or start with torchrun")
    _refuse_lonely(family) if alone else None
    command = f"torchrun --nproc_per_node {world} -m t2i.cli train {family} ..."
    present = [name for name in _LAUNCH if name in os.environ]
    missing = [name for name in _LAUNCH if name not in os.environ]
    if (int(world) > 1 or {"RANK", "LOCAL_RANK"} & set(present)) and missing:
        told = f"WORLD_SIZE is {world}" if not alone else f"{' and '.join(present)} set"
        raise InputError(f"{told} and {', '.join(missing)} not set; unset what is set, or start with: {command}")
    for name in ("RANK", "LOCAL_RANK", "MASTER_PORT", "LOCAL_WORLD_SIZE"):
        if not os.environ.get(name, "0").isdecimal():
            raise InputError(f"{name} is {os.environ[name]!r}, not a number; unset it, or start with: {command}")
    if int(os.environ.get("RANK", 0)) >= int(world):
        raise InputError(
            f"RANK is {os.environ['RANK']} of {world} processes, 0 to {int(world) - 1}; start with: {command}"
        )
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if devices is not None and local > devices:
        raise InputError(f"{local} processes for {devices} GPU(s); use --nproc_per_node {devices} or --set device=cpu")


def _refuse_lonely(family: str) -> None:
    """Raises InputError when a launcher has started several processes that do not know of each other."""
    sizes = {name: os.environ.get(name, "") for name in _MPI_SIZES}
    found = next(((name, int(size)) for name, size in sizes.items() if size.isdecimal() and int(size) > 1), None)
    if found is not None:
        raise InputError(
            f"{found[0]} is {found[1]}, and processes that mpirun or srun starts do not find each other here; start with: "
            f"torchrun --nproc_per_node {found[1]} -m t2i.cli train {family} ..."
        )
    asked = _asked_of_accelerate("num_processes")
    if any(number.isdecimal() and int(number) > 1 for number in asked):
        raise InputError(
            f"`accelerate launch` was asked for {asked[-1]} processes and has started one (on CPUs it takes --multi_gpu for "
            f"more); start with: torchrun --nproc_per_node {asked[-1]} -m t2i.cli train {family} ..."
        )


def _asked_of_accelerate(option: str) -> list[str]:
    """The values of an option of the `accelerate launch` that started this process."""
    words, names = accelerate_words(), (f"--{option}", f"--{option.replace('_', '-')}")
    found = [words[i + 1] for i, word in enumerate(words[:-1]) if word in names]
    return found + [word.partition("=")[2] for word in words if word.partition("=")[0] in names and "=" in word]


_LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "PMIX_SIZE", "SLURM_STEP_NUM_TASKS")
_HIDDEN = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "OMPI_COMM_WORLD_", "PMI_", "MV2_COMM_WORLD_")
_OTHER_WAYS = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "TP", "PARALLELISM_CONFIG", "SAGEMAKER")


@contextmanager
def _without_others_settings(config: TrainConfig, precision: str) -> Iterator[None]:
    """Hides the variables by which Accelerate would train otherwise than the config says, and tells which they are.

    Raises:
        InputError: one asks for a way of training that there is none of here.
    """
    for name in _OTHER_WAYS:
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("1", "true", "yes"):
            raise InputError(f"ACCELERATE_USE_{name} is set, which is not trained with here; unset it, or use torchrun")
    ours = {
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
            str(config.gradient_accumulation_steps),
            "gradient_accumulation_steps",
        ),
        "ACCELERATE_MIXED_PRECISION": (precision, "mixed_precision"),
        "ACCELERATE_DYNAMO_BACKEND": ("no", "compile"),
    }
    for name, (value, key) in ours.items():
        # what `accelerate launch` sets by itself asks for nothing
        if os.environ.get(name, "no").lower() not in ("no", value):
            warnings.warn(f"{name}={os.environ[name]} is ignored: the config decides; set {key}", stacklevel=4)
    # which `accelerate launch` hands on to DeepSpeed alone
    if (asked := _asked_of_accelerate(key := "gradient_accumulation_steps")) and asked[-1] != str(getattr(config, key)):
        warnings.warn(f"--{key} {asked[-1]} of accelerate is ignored: the config decides; set {key}", stacklevel=4)
    hidden = {name: value for name, value in os.environ.items() if name.startswith(_HIDDEN)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def call_the_roll() -> None:
    """Waits until every process of a launch by hand is there; torchrun sees to that itself.

    Raises:
        InputError: one is missing or there twice; the message names it.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if world == 1 or "TORCHELASTIC_RUN_ID" in os.environ or dist.is_initialized():
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    near = address in ("localhost", "127.0.0.1", "::1", socket.gethostname())
    seconds = ROLL_SECONDS if near else FAR_ROLL_SECONDS
    line = f"rank {rank} waits for the others at {address}:{port}\n".encode()
    told = threading.Timer(5.0, lambda: os.write(2, line))
    told.daemon = True
    told.start()
    try:
        wait = timedelta(seconds=seconds)
        # shared with Accelerate's, which is opened at the same port next
        words: Any = {"timeout": wait, "wait_for_workers": False, "multi_tenant": True}
        store = dist.TCPStore(address, port, world, rank == 0, **words)  # pyright: ignore[reportPrivateImportUsage]
        if store.add(f"t2i/{rank}", 1) > 1:
            raise InputError(f"rank {rank} was started twice; give each process a RANK of its own, 0 to {world - 1}")
        deadline = time.monotonic() + seconds
        while missing := [other for other in range(world) if not store.add(f"t2i/{other}", 0)]:
            if time.monotonic() > deadline:
                raise InputError(
                    f"rank {', '.join(map(str, missing))} of {world} has not come to {address}:{port} in {seconds} s; start "
                    "all processes, or torchrun, which does"
                )
            time.sleep(0.1)
    except (dist.DistError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:150]
        what = "that port cannot be opened, is rank 0 running already?" if rank == 0 else "rank 0 is not there"
        raise InputError(f"rank {rank} of {world}, {address}:{port}: {what} ({reason})") from error
    finally:
        told.cancel()
    _STORES.append(store)  # its server must live until Accelerate's is opened


_STORES: list[object] = []
