"""The Accelerator of a run: device, precision and processes. The only library file that knows Accelerate."""

import importlib.util
import os
import warnings
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from t2i.config.training import TrainConfig
from t2i.errors import InputError
from t2i.hardware import cpu_has_bf16


def make_accelerator(config: TrainConfig, directory: Path, family: str) -> Accelerator:
    """What the config asks for, `auto` resolved.

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
        able = cpu_has_bf16() if device == "cpu" else device == "cuda" and torch.cuda.is_bf16_supported()
        precision = "bf16" if able else "no"
    if precision == "bf16" and device == "cpu" and not cpu_has_bf16():
        warnings.warn("bf16 on a CPU without bf16 instructions is 2 to 4 times slower than fp32", stacklevel=3)
    if config.report_to == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise InputError("report_to tensorboard needs its package: pip install 't2i[track]', or set report_to=none")
    warnings.filterwarnings("ignore", message=".*`?broadcast_buffers`? is deprecated")  # Accelerate always passes it
    AcceleratorState._reset_state()  # or a second run of this process could not have another precision
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
    """Refuses environments in which processes would wait for each other for ever, or share a GPU.

    Args:
        family: for the command in the message.
        devices: GPUs of this machine, None when training on the CPU.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if not world.isdecimal() or int(world) < 1:
        raise InputError(f"WORLD_SIZE is {world!r}, not a number of processes; unset it, or start with torchrun")
    command = f"torchrun --nproc_per_node {world} -m t2i.cli train {family} ..."
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if int(world) > 1 and missing:
        raise InputError(f"WORLD_SIZE is {world} and {', '.join(missing)} not set; unset it, or start with: {command}")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if devices is not None and local > devices:
        raise InputError(f"{local} processes for {devices} GPU(s); use --nproc_per_node {devices} or --set device=cpu")
