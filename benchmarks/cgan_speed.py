"""Measures the speed of the conditional GAN beside DF-GAN, with equal numbers of parameters at 64 px, as markdown tables.

    git clone https://github.com/tobran/DF-GAN
    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive python benchmarks/cgan_speed.py DF-GAN

Of DF-GAN only the networks are used (nf 32: 8.4 M parameters, generator and discriminator), with its objective: hinge loss,
mismatched captions, MA-GP by double backward, Adam. Ours is `cgan-small` with its widths set to the same number, the losses
of `t2i.cgan.rules`, and everything that a step of `t2i train cgan` does except reading images: gradient norms, the averaged
generator, the mean latent. Each round runs all cases, so that slow minutes of the machine affect both sides; a figure is the
median of the rounds. FLOPs are counted by torch for convolutions and matrix products. The machine's rate is the best float32
rate of two probes, a large product and convolutions, with the same number of threads.
"""

import argparse
import importlib.util
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from t2i.cgan import rules
from t2i.cgan.architectures import build
from t2i.cgan.config import Config
from t2i.config import load as configs
from t2i.text import TextFeatures
from t2i.training.optimization import EMA

SIDE, BATCH, SAMPLED, TEXT, NOISE = 64, 24, 64, 256, 100
# as `cgan-small`, and as many parameters as DF-GAN with nf 32
WIDTHS = ("generator.w_dim=240", "discriminator.feature_dim=224")


class Case(NamedTuple):
    """One case to time."""

    task: str  # train, sample 64, sample 1
    who: str
    how: str
    threads: int
    images: int
    run: Callable[[], object]


# ---- the peer ------------------------------------------------------------------------------------------------------


def peer_networks(checkout: Path) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Returns generator, discriminator and conditional head of a checkout of tobran/DF-GAN."""
    path = checkout / "code" / "models" / "GAN.py"
    spec = importlib.util.spec_from_file_location("df_gan", path)
    if spec is None or spec.loader is None or not path.is_file():
        sys.exit(f"{checkout} is no checkout of tobran/DF-GAN: it has no code/models/GAN.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.NetG(32, NOISE, TEXT, SIDE, 3), module.NetD(32, SIDE, 3), module.NetC(32, TEXT)


def peer_step(networks: tuple[nn.Module, nn.Module, nn.Module], bf16: bool) -> Callable[[], None]:
    """Runs one iteration of both networks with DF-GAN's objective and learning rates."""
    generator, discriminator, head = networks
    players = [*discriminator.parameters(), *head.parameters()]
    g_optimizer = torch.optim.Adam(generator.parameters(), 1e-4, betas=(0.0, 0.9))
    d_optimizer = torch.optim.Adam(players, 4e-4, betas=(0.0, 0.9))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
    real = torch.rand(BATCH, 3, SIDE, SIDE) * 2 - 1
    text = torch.randn(BATCH, TEXT)

    def step() -> None:
        images, words = real.clone().requires_grad_(), text.clone().requires_grad_()
        with autocast:
            features = discriminator(images)
            matched, mismatched = head(features, words), head(features.roll(-1, dims=0), words)
            fake = generator(torch.randn(BATCH, NOISE), words)
            generated = head(discriminator(fake.detach()), words)
        wrong = (F.relu(1 + generated).mean() + F.relu(1 + mismatched).mean()) / 2
        slopes = torch.autograd.grad(matched.sum(), (images, words), create_graph=True)
        penalty = 2 * torch.cat([s.flatten(1) for s in slopes], dim=1).square().sum(dim=1).pow(3).mean()
        d_optimizer.zero_grad()
        (F.relu(1 - matched).mean() + wrong + penalty).backward()
        d_optimizer.step()
        with autocast:
            loss = -head(discriminator(fake), words).mean()
        g_optimizer.zero_grad()
        loss.backward()
        g_optimizer.step()

    return step


def peer_sample(generator: nn.Module, batch: int, bf16: bool) -> Callable[[], Tensor]:
    text = torch.randn(batch, TEXT)

    def run() -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return generator(torch.randn(batch, NOISE), text)

    return run


# ---- ours ----------------------------------------------------------------------------------------------------------


def our_networks(kind: str, channels_last: bool, compiled: bool) -> tuple[Config, nn.Module, nn.Module]:
    config = configs.load(Config, "cgan-small", [*WIDTHS, f"loss.kind={kind}", f"train_batch_size={BATCH}"])
    generator, discriminator = build(config, TEXT, TEXT)
    if not channels_last:
        for network in (generator, discriminator):
            network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        # the generator itself asks for channels_last at its 4 x 4 start
        first = generator.stages[0][0]  # type: ignore[index]
        first.register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:]))
    if compiled:
        generator.compile()
        discriminator.compile()
    return config, generator, discriminator


def our_step(config: Config, generator: nn.Module, discriminator: nn.Module, bf16: bool) -> Callable[[], None]:
    """Runs one step of train/cgan.py without its data, guidance and journal."""
    ema = EMA(generator, config.ema_halflife_images)
    betas = (0.0, config.adam_beta2)
    g_optimizer = torch.optim.Adam(generator.parameters(), config.learning_rate, betas=betas)
    d_optimizer = torch.optim.Adam(discriminator.parameters(), config.learning_rate, betas=betas)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
    real = torch.rand(BATCH, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last) * 2 - 1
    pooled, pool = torch.randn(BATCH, TEXT), torch.randn(config.loss.negatives, TEXT)
    text = TextFeatures(torch.zeros(BATCH, 0, TEXT), torch.zeros(BATCH, 0, dtype=torch.bool), pooled)
    captions = rules.CaptionPool(pooled, pool, torch.zeros(BATCH, len(pool), dtype=torch.bool))
    count, gamma = rules.penalised(config.loss, BATCH), getattr(config.loss, "gamma", 0.0)

    def norm(network: nn.Module) -> float:
        return float(nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None]))

    def step() -> None:
        probes = torch.randn_like(real[:count]), torch.randn_like(real[:count])
        z = torch.randn(BATCH, config.generator.z_dim)
        with autocast:
            fake = generator(z, text).float()
            loss, _ = rules.discriminator_loss(discriminator, real, fake.detach(), captions, probes, config.loss, gamma)
        loss.backward()
        norm(discriminator)
        d_optimizer.step()
        d_optimizer.zero_grad()
        discriminator.requires_grad_(False)
        with autocast:
            loss = rules.generator_loss(discriminator, real, fake, captions, config.loss)
        loss.backward()
        discriminator.requires_grad_(True)
        norm(generator)
        g_optimizer.step()
        g_optimizer.zero_grad()
        with torch.no_grad():
            mean = generator.mapping(z, pooled).mean(dim=0)  # type: ignore[operator]
            generator.w_average.lerp_(mean, 0.02)  # type: ignore[union-attr,operator]
        ema.update(generator, BATCH, 10 * BATCH)

    return step


def our_sample(generator: nn.Module, z_dim: int, batch: int, bf16: bool) -> Callable[[], Tensor]:
    text = TextFeatures(torch.zeros(batch, 0, TEXT), torch.zeros(batch, 0, dtype=torch.bool), torch.randn(batch, TEXT))

    def run() -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return generator(torch.randn(batch, z_dim), text)

    return run


# ---- measuring -----------------------------------------------------------------------------------------------------


def make_cases(checkout: Path, threads: int, bf16: bool, compiled: bool) -> list[Case]:
    """Returns every case with all threads, and the main ones with one thread too."""
    cases: list[Case] = []

    def add(
        who: str, how: str, train: Callable[[], object], sample: Callable[[int], Callable[[], object]] | None
    ) -> None:
        for count in (
            sorted({1, threads}, reverse=True) if how == "fp32, channels_last" or who == "DF-GAN" else [threads]
        ):
            cases.append(Case(f"train, batch {BATCH}", who, how, count, BATCH, train))
            for batch in (SAMPLED, 1) if sample else ():
                cases.append(Case(f"sample, batch {batch}", who, how, count, batch, sample(batch)))  # type: ignore[misc]

    for how in ["fp32", "fp32, channels_last"] + ["bf16"] * bf16:
        networks = peer_networks(checkout)
        if "channels_last" in how:
            for network in networks:
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        half = how == "bf16"
        add("DF-GAN", how, peer_step(networks, half), lambda n, g=networks[0], h=half: peer_sample(g, n, h))
    ways = (
        ["fp32, channels_last", "fp32"] + ["bf16, channels_last"] * bf16 + ["fp32, channels_last, compile"] * compiled
    )
    for kind, who in (("relativistic", "ours"), ("hinge", "ours, hinge + MA-GP")):
        for how in ways:
            if kind == "hinge" and "compile" in how:
                continue  # torch.compile knows no double backward
            config, generator, discriminator = our_networks(kind, "channels_last" in how, "compile" in how)
            half = "bf16" in how
            step = our_step(config, generator, discriminator, half)
            draw = lambda n, g=generator, c=config, h=half: our_sample(g, c.generator.z_dim, n, h)  # noqa: E731
            add(who, how, step, draw if kind == "relativistic" else None)
    return cases


def measure(cases: list[Case], rounds: int) -> dict[Case, float]:
    """Returns the median seconds of each case that runs, after one warm-up; short cases are repeated within a round."""
    taken: dict[Case, list[float]] = {}
    for case in cases:
        torch.set_num_threads(case.threads)
        print(f"warm-up: {case.who}, {case.how}, {case.task}, {case.threads} threads", file=sys.stderr, flush=True)
        try:
            case.run()
            taken[case] = []
        except Exception as error:
            lines = str(error).splitlines() or [""]
            print(
                f"- {case.who}, {case.how}, {case.task}: does not work here ({type(error).__name__}: {lines[0][:100]})"
            )
    for turn in range(rounds):
        print(f"round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
        for case, seconds in taken.items():
            torch.set_num_threads(case.threads)
            for _ in range(10 if case.task.endswith(" 1") else 1):
                start = time.perf_counter()
                case.run()
                seconds.append(time.perf_counter() - start)
    return {case: statistics.median(seconds) for case, seconds in taken.items()}


class Counter(TorchDispatchMode):
    """Adds up torch's counts. `FlopCounterMode` hooks modules, which does not work with a gradient inside a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        self.total += count(*args, **(kwargs or {}), out_val=out) if count else 0
        return out


def flops(run: Callable[[], object]) -> float:
    with Counter() as counter:
        run()
    return float(counter.total)


def rate(run: Callable[[], object], work: float, rounds: int = 10) -> float:
    """Returns GFLOP/s, the median of `rounds`."""
    run()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return work / statistics.median(taken) / 1e9


def machine(threads: int) -> dict[str, float]:
    """Returns the GFLOP/s of large products and of convolutions."""
    torch.set_num_threads(threads)
    a, half = torch.randn(1024, 1024), torch.randn(1024, 1024).bfloat16()
    found = {
        "matmul fp32 1024": rate(lambda: a @ a, 2 * 1024**3),
        "matmul bf16 1024": rate(lambda: half @ half, 2 * 1024**3),
    }
    with torch.no_grad():
        for channels, side in ((64, 64), (128, 32), (256, 16)):
            layer = nn.Conv2d(channels, channels, 3, padding=1)
            for name, form in (("nchw", torch.contiguous_format), ("channels_last", torch.channels_last)):
                layer.to(memory_format=form)  # type: ignore[call-overload]
                x = torch.randn(16, channels, side, side).contiguous(memory_format=form)
                work = 2 * 16 * side * side * channels * channels * 9
                found[f"conv3x3 {channels} at {side} px, {name}"] = rate(lambda x=x, m=layer: m(x), work)
    return found


def where_time_goes(run: Callable[[], object], threads: int) -> list[tuple[str, float]]:
    """Returns the operators that take the most time themselves, and their shares."""
    torch.set_num_threads(threads)
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    events = profile.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    largest = sorted(events, key=lambda event: event.self_cpu_time_total, reverse=True)[:10]
    return [(event.key, event.self_cpu_time_total / total) for event in largest]


def report(medians: dict[Case, float], limit: dict[int, float], counted: dict[Case, float]) -> None:
    peers = {}
    for case, seconds in medians.items():
        if case.who == "DF-GAN" and not case.how.startswith(
            "bf16"
        ):  # the faster layout of the peer, in its own precision
            key = case.task, case.threads
            peers[key] = min(peers.get(key, seconds), seconds)
    print("\n| task | who | how | threads | ms | images/s | of DF-GAN | GFLOP | GFLOP/s | of the machine |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for case, seconds in sorted(medians.items(), key=lambda item: (item[0].task, -item[0].threads)):
        speed, work = case.images / seconds, counted.get(case, float("nan")) / 1e9
        of_peer = f"{peers[case.task, case.threads] / seconds:.2f} x"
        share = work / seconds / limit[case.threads]
        print(
            f"| {case.task} | {case.who} | {case.how} | {case.threads} | {seconds * 1e3:,.1f} | {speed:,.1f} | {of_peer} | "
            f"{work:,.1f} | {work / seconds:,.0f} | {share:.0%} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", type=Path, help="a checkout of tobran/DF-GAN")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-bf16", action="store_true", help="leave bf16 out: it is slow where it is emulated")
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(
        f"torch {torch.__version__}, {threads} threads, {torch.backends.cpu.get_cpu_capability()}, load average {load}\n"
    )
    sizes = {"DF-GAN": peer_networks(options.peer), "ours": our_networks("relativistic", True, False)[1:]}
    for who, networks in sizes.items():
        counts = [sum(p.numel() for p in network.parameters()) / 1e6 for network in networks]
        print(f"- {who}: {sum(counts):.2f} M parameters, the generator {counts[0]:.2f} M")
    machines = {count: machine(count) for count in sorted({1, threads}, reverse=True)}
    print("\n| probe | " + " | ".join(f"GFLOP/s, {count} threads" for count in machines) + " |")
    print("|---|" + "---|" * len(machines))
    for name in machines[threads]:
        print(f"| {name} | " + " | ".join(f"{found[name]:,.0f}" for found in machines.values()) + " |")
    print(flush=True)

    cases = make_cases(options.peer, threads, not options.no_bf16, not options.no_compile)
    medians = measure(cases, options.rounds)
    plain = {(c.task, c.who, c.how): flops(c.run) for c in medians if c.threads == threads and "compile" not in c.how}
    counted = {
        c: plain[c.task, c.who, c.how.replace(", compile", "")] for c in medians
    }  # the same work, compiled or not
    report(medians, {n: max(v for k, v in found.items() if "bf16" not in k) for n, found in machines.items()}, counted)
    print(f"\nload average after it: {', '.join(f'{x:.1f}' for x in os.getloadavg())}")
    ours = next(c for c in medians if c.who == "ours" and c.task.startswith("train") and c.how == "fp32, channels_last")
    print(
        f"\nWhere the time of a step goes ({ours.who}, {ours.how}, {threads} threads):\n\n| operator | share |\n|---|---|"
    )
    for name, share in where_time_goes(ours.run, threads):
        print(f"| {name} | {share:.0%} |")


if __name__ == "__main__":
    main()
