"""A run of two tiny networks, small enough to be killed and resumed many times in a test."""

import math
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.state import AcceleratorState
from torch import nn

from builders.forks import fork, wait
from t2i import checkpoint
from t2i.config.training import TrainConfig
from t2i.data import Dataset, View, open_dataset
from t2i.data.loader import Loader
from t2i.seeding import normal
from t2i.training.optimization import EMA, NonFiniteGuard, learning_rate
from t2i.training.run import Run


class Config(TrainConfig):
    """A tiny adversarial pair."""

    family: Literal["toy"] = "toy"
    width: int = 6
    learning_rate: float = 1e-2
    lr_warmup_steps: int = 3


def config(**changes: Any) -> Config:
    values = {"train_batch_size": 8, "max_train_steps": 12, "checkpointing_steps": 4, "log_steps": 3, "device": "cpu"}
    return Config.model_validate(values | changes)


def warm_up() -> None:
    """Does what is slow the first time (torch's first optimizer imports a compiler), once and before any fork."""
    torch.set_num_threads(1)
    model = nn.Linear(2, 2)
    model(torch.ones(2)).sum().backward()
    torch.optim.Adam(model.parameters()).step()
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)


def train(
    directory: Path,
    cfg: Config,
    each_step: Callable[[Run], None] = lambda run: None,
    family: str = "toy",
    spoilt: Callable[[int], bool] = lambda step: False,
    limit: int = 3,
    data: Dataset | None = None,
) -> None:
    """Trains two networks with an optimizer each, dropout, batch norm, an average, and noise by sample."""
    dataset = data or open_dataset("shapes-1", "train", View(resolution=32, limit=50))
    with Run(directory, cfg, family) as run:
        run.identity.keep_data(dataset)
        generator = nn.Sequential(nn.Linear(4, cfg.width), nn.Dropout(0.3), nn.Linear(cfg.width, 3 * 16))
        layers = (
            nn.Conv2d(3, cfg.width, 4, 4),
            nn.BatchNorm2d(cfg.width),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(cfg.width, 1),
        )
        critic = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        average = EMA(generator, halflife_images=200)
        generator, critic = run.prepare(generator), run.prepare(critic)
        optimizers = [torch.optim.Adam(player.parameters(), betas=(0.0, 0.99)) for player in (generator, critic)]
        run.register("generator", generator)
        run.register("critic", critic)
        run.register("ema", average)
        run.register("optimizer_g", optimizers[0])
        run.register("optimizer_d", optimizers[1])
        run.resume()
        first = run.step
        loader = Loader(dataset, cfg.train_batch_size, cfg.seed, run.position, cfg.dataloader_num_workers)
        run.guard = NonFiniteGuard(run.rollback, limit)
        schedule = partial(learning_rate, base=cfg.learning_rate, warmup=cfg.lr_warmup_steps, final_factor=0.0)
        for batches in run.steps(loader, *optimizers, schedule=schedule):
            if run.due(cfg.checkpointing_steps):
                run.extra["last"] = run.step
                run.save()
                torch.rand(run.step)  # a validation may draw: the next step must not feel it
            if run.step > first:
                each_step(run)
            micros = list(batches)
            if not micros:
                break
            (batch,) = micros
            real = batch.images_BHWC.permute(0, 3, 1, 2)[:, :, ::8, ::8].float() / 127.5 - 1
            fake = generator(torch.from_numpy(normal(cfg.seed, "z", batch.sample_ids, 4))).view(-1, 3, 4, 4)
            logits = critic(torch.cat([real, fake])).chunk(2)
            loss = nn.functional.softplus(logits[1] - logits[0]).mean()
            loss.backward()
            if spoilt(run.step) and run.process_index == run.num_processes - 1:
                loss = loss * math.nan
            sound = run.judge(loss)
            if sound:
                for optimizer in optimizers:
                    optimizer.step()
                average.update(generator, run.images_per_step, run.images_seen + run.images_per_step)
            for optimizer in optimizers:
                optimizer.zero_grad()
            run.note({"loss": loss, "rate": optimizers[0].param_groups[0]["lr"]})


def kill_at(step: int) -> Callable[[Run], None]:
    def each_step(run: Run) -> None:
        if run.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return each_step


def digests(directory: Path, step: int) -> dict[str, str]:
    """Returns the sha256 of every part of a checkpoint: weights, average and optimizers."""
    _, manifest = checkpoint.load(directory / "checkpoints" / f"step-{step:08d}")
    return {name: entry["sha256"] for name, entry in manifest["files"].items()}


def saved_steps(directory: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (directory / "checkpoints").glob("step-*"))


def free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def two_processes(
    action: Callable[[int], Any], port: str | None = None, world: int = 2, seconds: float = 60.0
) -> list[int]:
    """Forks the ranks of a job on the CPU, like torchrun; returns their exit statuses."""
    port = port or free_port()

    def rank(index: int) -> None:
        os.environ |= {"RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": str(world)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        # a run of another test may have made this process's one Accelerate state already, for a single process
        AcceleratorState._reset_state(reset_partial_state=True)
        action(index)

    return [wait(pid, seconds) for pid in [fork(lambda i=i: rank(i)) for i in range(world)]]
