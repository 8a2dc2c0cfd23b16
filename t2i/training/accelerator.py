"""Creates the Accelerator of a run (device, precision, processes). No other library file imports Accelerate."""

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
from t2i.names import counted
from t2i.training.stopping.signals import accelerate_words
from t2i.training.trackers import refuse_missing

ROLL_SECONDS, FAR_ROLL_SECONDS = 45, 600  # how long a process waits for the others on one machine, on several machines


def make_accelerator(config: TrainConfig, directory: Path, family: str) -> Accelerator:
    """Returns an Accelerator for the config, with every `auto` resolved.

    Raises:
        InputError: the device or the tracker is missing, or the processes were launched incorrectly.
    """
    device = _device_of(config)
    check_launch(family, torch.cuda.device_count() if device == "cuda" else None)
    precision = config.mixed_precision
    if precision == "auto":
        precision = "bf16" if has_bf16(device) else "no"
    if precision == "bf16" and not has_bf16(device):
        warnings.warn(f"this {device.upper()} only emulates bf16, 2 to 4 times slower than fp32", stacklevel=3)
    refuse_missing(config.report_to)
    warnings.filterwarnings("ignore", message=".*`?broadcast_buffers`? is deprecated")  # Accelerate always passes it
    AcceleratorState._reset_state()  # otherwise a second run in this process could not use another precision
    wait_for_all()
    with _without_foreign_settings(config, precision):
        accelerator = Accelerator(
            cpu=device == "cpu",
            mixed_precision=precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            log_with=None if config.report_to == "none" else config.report_to,
            project_dir=directory,
            # a GAN's networks run several times before one backward pass, which buffers written in between would break
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
    if int(os.environ.get("WORLD_SIZE", 1)) != accelerator.num_processes:
        raise InputError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {accelerator.num_processes} process(es) found each other; "
            f"start with: torchrun --nproc_per_node {os.environ['WORLD_SIZE']} -m t2i.cli train {family} ..."
        )
    return accelerator


def _device_of(config: TrainConfig) -> str:
    """Returns the type of device to train on.

    Raises:
        InputError: torch cannot use the device that the config names.
    """
    device = config.device
    forced_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = "cpu" if forced_cpu else next(name for name in usable if usable[name])
    if not usable[device]:
        raise InputError(
            f"device={device} was requested, but torch {torch.__version__} finds no such device; install a torch built for "
            "it (`t2i doctor` shows the present build) or use --set device=cpu"
        )
    return device


def check_launch(family: str, devices: int | None) -> None:
    """Raises InputError if the processes would wait for each other forever, train separately, or share a GPU.

    Args:
        family: appears in the command that messages suggest.
        devices: number of GPUs of this machine; None when training on the CPU.
    """
    alone = "WORLD_SIZE" not in os.environ
    world = os.environ.get("WORLD_SIZE", "1")
    if not world.isdecimal() or int(world) < 1:
        raise InputError(f"WORLD_SIZE is {world!r}, not a number of processes; unset it, or start with torchrun")
    if alone:
        _refuse_unconnected(family)
    command = f"torchrun --nproc_per_node {world} -m t2i.cli train {family} ..."
    present = [name for name in _LAUNCH if name in os.environ]
    missing = [name for name in _LAUNCH if name not in os.environ]
    if (int(world) > 1 or {"RANK", "LOCAL_RANK"} & set(present)) and missing:
        state = f"{' and '.join(present)} set" if alone else f"WORLD_SIZE is {world}"
        raise InputError(f"{state} but {', '.join(missing)} not set; unset the former, or start with: {command}")
    for name in ("RANK", "LOCAL_RANK", "MASTER_PORT", "LOCAL_WORLD_SIZE"):
        if not os.environ.get(name, "0").isdecimal():
            raise InputError(f"{name} is {os.environ[name]!r}, not a number; unset it, or start with: {command}")
    if int(os.environ.get("RANK", 0)) >= int(world):
        raise InputError(
            f"RANK is {os.environ['RANK']}, but must be 0 to {int(world) - 1} for {counted(int(world), 'process')}; "
            f"start with: {command}"
        )
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if devices is not None and local > devices:
        raise InputError(
            f"{counted(local, 'process')} for {counted(devices, 'GPU')}; use --nproc_per_node {devices} or --set device=cpu"
        )


def _refuse_unconnected(family: str) -> None:
    """Raises InputError if a launcher has started several processes that are not connected to each other."""
    for name in _MPI_SIZES:
        size = os.environ.get(name, "")
        if size.isdecimal() and int(size) > 1:
            raise InputError(
                f"{name} is {int(size)}, but processes started by mpirun or srun do not find each other here; start with: "
                f"torchrun --nproc_per_node {int(size)} -m t2i.cli train {family} ..."
            )
    sizes = _accelerate_option("num_processes")
    if any(size.isdecimal() and int(size) > 1 for size in sizes):
        raise InputError(
            f"`accelerate launch --num_processes {sizes[-1]}` started one process (on CPUs it needs --multi_gpu to start more); "
            f"start with: torchrun --nproc_per_node {sizes[-1]} -m t2i.cli train {family} ..."
        )


def _accelerate_option(option: str) -> list[str]:
    """Returns the values of an option of the `accelerate launch` command that started this process."""
    words, names = accelerate_words(), (f"--{option}", f"--{option.replace('_', '-')}")
    values = [words[i + 1] for i, word in enumerate(words[:-1]) if word in names]
    return values + [word.partition("=")[2] for word in words if word.partition("=")[0] in names and "=" in word]


_LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "PMIX_SIZE", "SLURM_STEP_NUM_TASKS")
_HIDDEN = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "OMPI_COMM_WORLD_", "PMI_", "MV2_COMM_WORLD_")
_UNSUPPORTED = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "TP", "PARALLELISM_CONFIG", "SAGEMAKER")


@contextmanager
def _without_foreign_settings(config: TrainConfig, precision: str) -> Iterator[None]:
    """Hides environment variables that would make Accelerate deviate from the config, and warns about them.

    Raises:
        InputError: a variable requests a training method that t2i does not support.
    """
    for name in _UNSUPPORTED:
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("1", "true", "yes"):
            raise InputError(f"ACCELERATE_USE_{name} is set, but t2i does not support it; unset it, or use torchrun")
    configured = {
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
            str(config.gradient_accumulation_steps),
            "gradient_accumulation_steps",
        ),
        "ACCELERATE_MIXED_PRECISION": (precision, "mixed_precision"),
        "ACCELERATE_DYNAMO_BACKEND": ("no", "compile"),
    }
    for name, (value, key) in configured.items():
        # `accelerate launch` sets "no" by default
        if os.environ.get(name, "no").lower() not in ("no", value):
            warnings.warn(f"{name}={os.environ[name]} is ignored: the config decides; set {key}", stacklevel=4)
    # `accelerate launch` passes this option to DeepSpeed alone
    key = "gradient_accumulation_steps"
    if (values := _accelerate_option(key)) and values[-1] != str(getattr(config, key)):
        warnings.warn(f"--{key} {values[-1]} of accelerate is ignored: the config decides; set {key}", stacklevel=4)
    hidden = {name: value for name, value in os.environ.items() if name.startswith(_HIDDEN)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def wait_for_all() -> None:
    """Waits until every process has started if they are launched by hand; torchrun does that itself.

    Raises:
        InputError: a process is missing or was started twice; the message names its rank.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if world == 1 or "TORCHELASTIC_RUN_ID" in os.environ or dist.is_initialized():
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    near = address in ("localhost", "127.0.0.1", "::1", socket.gethostname())
    seconds = ROLL_SECONDS if near else FAR_ROLL_SECONDS
    line = f"rank {rank} waits for the others at {address}:{port}\n".encode()
    message = threading.Timer(5.0, lambda: os.write(2, line))
    message.daemon = True
    message.start()
    try:
        if rank > 0:
            _wait_for_server(address, port, seconds)
        # multi_tenant shares the server with Accelerate, which opens the same port next
        options: Any = {"timeout": timedelta(seconds=seconds), "wait_for_workers": False, "multi_tenant": True}
        store = dist.TCPStore(address, port, world, rank == 0, **options)  # pyright: ignore[reportPrivateImportUsage]
        if store.add(f"t2i/{rank}", 1) > 1:
            raise InputError(f"rank {rank} was started twice; give each process its own RANK, 0 to {world - 1}")
        deadline = time.monotonic() + seconds
        while missing := [other for other in range(world) if not store.add(f"t2i/{other}", 0)]:
            if time.monotonic() > deadline:
                raise InputError(
                    f"rank {', '.join(map(str, missing))} of {world} did not connect to {address}:{port} within {seconds} s; "
                    "start all processes, or use torchrun, which starts them all"
                )
            time.sleep(0.1)
    except (dist.DistError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:150]
        what = "that port cannot be opened, is rank 0 running already?" if rank == 0 else "rank 0 does not answer"
        raise InputError(f"rank {rank} of {world}, {address}:{port}: {what} ({reason})") from error
    finally:
        message.cancel()
    _STORES.append(store)  # its server must live until Accelerate has opened its own store


def _wait_for_server(address: str, port: int, seconds: float) -> None:
    """Waits until rank 0 listens; torch's own client would print a C++ stack trace if it never does.

    Raises:
        OSError: nothing listens there after so many seconds.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((address, port), timeout=5).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


_STORES: list[object] = []
