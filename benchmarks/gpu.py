"""Measures speed, utilisation, decoding, exactness and small trainings of every family on a GPU, within ten minutes.

    python benchmarks/gpu.py --out results                # on a GPU; the same command continues an interrupted run
    python benchmarks/gpu.py --out results --rehearse     # every case at toy size, on a CPU in about two minutes

Each case is a separate process with a time limit, so that a failed compilation or a full GPU memory does not end the others.
After every case `results.json` and `results.md` are written again, so an interrupted run keeps its measurements. No network
is needed: data is rendered, networks have random or shipped weights, captions are read by `bow`.

Cases, in order:
- machine: `t2i doctor`, bandwidth of a device copy, rate of a bf16 matrix product: the limits for the other figures.
- train-FAMILY-SIZE[-compile]: 50 steps of a shipped config through the command line: images/s, share of time waiting for data,
  FLOPs per step (from a run of three steps minus one of one) and MFU; and from a profile of ten steps, per step: kernels, host
  synchronisations, share of the time that the device is busy.
- decode-ORDER-BATCH[-guided][-compile]: codes of a `base` prior of 256 tokens: tokens/s beside the bandwidth limit; kernel and
  graph launches per token (few launches mean that CUDA graphs run).
- exact-FAMILY: a run that is stopped and resumed beside an uninterrupted one, tensor by tensor, and 20 losses on GPU and CPU.
- features: Inception at 299 px and a text tower of MiniLM's size, rows/s.
- shapes: shapes-3 at 64 px: tokenizer, prior, one-pass generator and GAN trained for a minute or two each and scored; weights
  are kept in OUT/weights.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FAMILIES = ("align", "vqvae", "prior", "cvae", "cgan")
MINUTES = 10.0
# what makes a shipped config of any size small enough for a rehearsal
TOY = {
    "align": ["text_tower={width: 16, depth: 1, heads: 2}", "image_tower={width: 16, width_limit: 16}", "embedding=16"],
    "vqvae": [
        "autoencoder={width: 8, width_limit: 16, grid: 4}",
        "quantizer={codebook_size: 16, dim: 4, warmup_steps: 1}",
        "discriminator={width: 8, halvings: 1}",
    ],
    "prior": ["model={width: 32, depth: 1, heads: 2, mlp_width: 32}"],
    "cvae": ["model={width: 16, depth: 1, heads: 1, posterior_width: 8}", "critic={start: 0.5, depth: 1}"],
    "cgan": [
        "generator={width: 8, width_limit: 16, w_dim: 16, z_dim: 8}",
        "discriminator={width: 8, width_limit: 16, feature_dim: 16}",
    ],
}
Result = dict[str, Any]


# ---- the cases ------------------------------------------------------------------------------------------------------


def cases(rehearse: bool) -> dict[str, tuple[float, Callable[[], Result]]]:
    """Returns name -> (time limit in seconds, command)."""
    found: dict[str, tuple[float, Callable[[], Result]]] = {"machine": (40, lambda: machine(rehearse))}
    for family, size, compiled in (
        ("cgan", "small", False),
        ("vqvae", "small", False),
        ("prior", "small", False),
        ("prior", "base", False),
        ("cgan", "base", False),
        ("vqvae", "base", False),
        ("align", "tiny", False),
        ("cvae", "shapes64", False),
        ("cvae", "shapes64", True),
        ("prior", "base", True),
        ("cgan", "small", True),
    ):
        name = f"train-{family}-{size}{'-compile' if compiled else ''}"
        found[name] = (75 if compiled else 45, lambda f=family, s=size, c=compiled: training(f, s, c, rehearse))
    for order, batch, guided, compiled in (
        ("raster", 1, False, False),
        ("raster", 1, False, True),
        ("raster", 64, True, False),
        ("random", 1, False, False),
        ("random", 1, False, True),
        ("random", 64, True, False),
    ):
        name = f"decode-{order}-{batch}{'-guided' if guided else ''}{'-compile' if compiled else ''}"
        found[name] = (60, lambda o=order, b=batch, g=guided, c=compiled: decoding(o, b, g, c, rehearse))
    for family in FAMILIES:
        found[f"exact-{family}"] = (60, lambda f=family: exactness(f))
    found["features"] = (45, lambda: features(rehearse))
    found["shapes"] = (400, lambda: shapes(rehearse))
    return found


def machine(rehearse: bool) -> Result:
    import torch

    from t2i.cli.doctor import examine

    size, device = (2**20 if rehearse else 2**28), place()
    source = torch.randn(size, device=device)
    target = torch.empty_like(source)
    side = 512 if rehearse else 8192
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "torch": torch.__version__,
        "bandwidth_gb_s": 8 * size / seconds(lambda: target.copy_(source)) / 1e9,
        "bf16_tflop_s": 2 * side**3 / seconds(lambda: a @ b) / 1e12,
        "doctor": [str(finding) for finding in examine()],
    }


def training(family: str, size: str, compiled: bool, rehearse: bool) -> Result:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    steps = 4 if rehearse else 50
    changes = [f"compile={str(compiled).lower()}", "max_train_minutes=null"]
    with scratch() as folder:
        needs = prepare(family, size, folder, rehearse)
        run = folder / "timed"
        train(family, size, run, [*needs, *changes, f"max_train_steps={steps}", "log_steps=1"], rehearse)
        speeds = scalars(run, "images_per_second")[2 if rehearse else 20 :]
        waits = scalars(run, "data_wait")[2 if rehearse else 20 :]
        result: Result = {"images_per_s": statistics.median(speeds)}
        if waits:  # a prior reads its codes from memory
            result["data_wait"] = statistics.median(waits)
        result["loss"] = next(iter(scalars(run, "loss") or scalars(run, "g_loss") or [None]))
        if compiled:
            return result
        flops = []
        for count in (1, 3):
            with FlopCounterMode(display=False) as counter:
                train(family, size, folder / f"flops-{count}", [*needs, *changes, f"max_train_steps={count}"], rehearse)
            flops.append(counter.get_total_flops())
        result["gflop_a_step"] = (flops[1] - flops[0]) / 2e9
        if not rehearse and torch.cuda.is_available():
            result |= profile(family, size, folder, [*needs, *changes])
    return result


def profile(family: str, size: str, folder: Path, needs: list[str]) -> Result:
    """Returns kernels, synchronisations and busy time per step, from a run of 15 steps minus one of 5."""
    import torch
    from torch.profiler import ProfilerActivity

    counts: list[dict[str, float]] = []
    for steps in (5, 15):
        with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            start = time.perf_counter()
            train(family, size, folder / f"profile-{steps}", [*needs, f"max_train_steps={steps}"], False)
            wall = time.perf_counter() - start
        events = seen.events()
        kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
        waits = sum(
            event.name in ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize") for event in events
        )
        items = sum(event.name == "aten::_local_scalar_dense" for event in events)
        busy = sum(event.time_range.elapsed_us() for event in kernels) / 1e6
        counts.append({"kernels": len(kernels), "syncs": waits, "items": items, "busy": busy, "wall": wall})
    less = {name: (counts[1][name] - counts[0][name]) / 10 for name in counts[0]}
    return {
        "kernels_a_step": less["kernels"],
        "synchronisations_a_step": less["syncs"],
        "items_a_step": less["items"],
        "device_busy": less["busy"] / max(less["wall"], 1e-9),
    }


def decoding(order: str, batch: int, guided: bool, compiled: bool, rehearse: bool) -> Result:
    import torch

    from t2i.prior.config import Config, SamplingConfig
    from t2i.prior.decoding import decode
    from t2i.prior.transformer import Grid, Prior
    from t2i.text import TextFeatures

    side, width, depth, codes = (4, 64, 2, 256) if rehearse else (16, 768, 12, 16384)
    config = Config.model_validate({
        "order": order,
        "model": {"width": width, "depth": depth, "heads": width // 64, "mlp_width": width * 29 // 12 // 16 * 16},
    })  # fmt: skip
    torch.manual_seed(0)
    model = Prior(config, Grid(side, side, 1, codes), 512, 512, 77).to(place())
    torch.nn.init.normal_(model.head.weight, std=0.05)
    if torch.cuda.is_available():
        model = model.bfloat16()
    dtype = next(model.parameters()).dtype
    text = TextFeatures(
        torch.randn(batch, 77, 512, dtype=dtype),
        torch.ones(batch, 77, dtype=torch.bool),
        torch.randn(batch, 512, dtype=dtype),
    )
    sampling = SamplingConfig(guidance=2.0 if guided else 1.0, top_k=100, steps=(side if order == "random" else None))
    tokens = batch * side * side

    def run() -> object:
        return decode(model, text, list(range(batch)), sampling, compile=compiled)

    took = seconds(run, rounds=2 if rehearse else 5, warm_up=2 if compiled else 1)
    weights = sum(p.nbytes for p in model.parameters())
    result: Result = {"tokens_per_s": tokens / took, "weights_mib": weights / 2**20, "seconds": took}
    steps = side if order == "random" else side * side
    result["passes_per_s"] = steps / took  # each pass reads all weights once: bandwidth / weights is the limit
    if torch.cuda.is_available():
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            run()
            torch.cuda.synchronize()
        names = [event.name for event in seen.events()]
        result["kernel_launches_a_pass"] = sum("LaunchKernel" in name for name in names) / steps
        result["graph_launches_a_pass"] = sum("GraphLaunch" in name for name in names) / steps
    return result


def exactness(family: str) -> Result:
    """Returns the tensors that differ after a resumption, and the largest relative difference of losses from the CPU's."""
    import torch

    from t2i import checkpoint

    with scratch() as folder:
        needs = [*prepare(family, "tiny", folder, True), "max_train_minutes=null", "log_steps=1", "mixed_precision=no"]
        needs += ["max_train_steps=20", "checkpointing_steps=10"]
        train(family, "tiny", folder / "whole", needs, True)
        shutil.copytree(folder / "whole", folder / "parts")
        shutil.rmtree(folder / "parts" / "checkpoints" / "step-00000020")
        train(family, "tiny", folder / "parts", needs, True)
        states = []
        for name in ("whole", "parts"):
            newest = checkpoint.latest(folder / name / "checkpoints")
            assert newest is not None
            states.append(checkpoint.load(newest)[0])
        differ = [f"{part}.{key}" for part, tensors in states[0].items() for key, value in tensors.items()
                  if not torch.equal(value, states[1][part][key])]  # fmt: skip
        result: Result = {"tensors_that_differ": len(differ), "first": differ[:3]}
        if torch.cuda.is_available():
            train(family, "tiny", folder / "cpu", [*needs, "device=cpu"], True)
            name = "g_loss" if family == "cgan" else "loss"
            gpu, cpu = scalars(folder / "whole", name), scalars(folder / "cpu", name)
            result["loss_gpu_against_cpu"] = max(
                (abs(a - b) / max(abs(b), 1e-3) for a, b in zip(gpu, cpu, strict=True)), default=None
            )
    return result


def features(rehearse: bool) -> Result:
    import torch
    from transformers import BertConfig, BertModel

    from t2i.extractors.inception_network import Inception

    batch = 2 if rehearse else 64
    device = place()
    network = Inception().to(device).eval()
    images = torch.randn(batch, 3, 299, 299, device=device)
    tower = BertModel(BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536))
    tower = tower.to(device).eval()
    words = torch.randint(0, 30000, (4 * batch, 16), device=device)
    with torch.inference_mode():
        return {
            "inception_images_per_s": batch / seconds(lambda: network(images), rounds=2 if rehearse else 10),
            "minilm_captions_per_s": 4 * batch / seconds(lambda: tower(words), rounds=2 if rehearse else 20),
        }


def shapes(rehearse: bool) -> Result:
    """Trains every family on shapes-3 at 64 px for a minute or two, and scores it."""
    from t2i.metrics.score import read_scores

    minutes = {"vqvae": 1.0, "prior": 2.0, "cvae": 1.0, "cgan": 1.0}
    if rehearse:
        minutes = dict.fromkeys(minutes, 0.05)
    limit = 500 if rehearse else 100_000
    out = Path(os.environ["GPU_OUT"]) / "weights"
    result: Result = {}
    for family in minutes:
        common = [
            f"max_train_minutes={minutes[family]}",
            "max_train_steps=1000000",
            f"data.limit={limit}",
            "text.encoder=bow",
        ]
        common = common[: 3 if family == "vqvae" else 4] + ["validation_n=64", "validation_steps=100000"]
        over_codes = [f"tokenizer.path={out / 'vqvae'}"]
        extra = {"prior": over_codes, "cvae": over_codes, "cgan": ["guidance.encoder=none"], "vqvae": []}[family]
        if not (out / family / "checkpoints").exists():
            command(
                "train",
                family,
                "--config",
                f"{family}-shapes64",
                "--run-dir",
                str(out / family),
                *sets([*common, *extra]),
            )
        if family != "vqvae":
            scores = out / f"{family}.json"
            n = "20" if rehearse else "500"
            command(
                "eval",
                "score",
                str(out / family),
                "--split",
                "val",
                "-n",
                n,
                "--metrics",
                "faithfulness",
                "--out",
                str(scores),
            )
            result |= {f"{family} {score.name}": score.value for score in read_scores(scores) if "strict" in score.name}
        steps = scalars(out / family, "images_seen") or scalars(out / family, "step")
        result[f"{family} steps or images"] = steps[-1] if steps else None
    return result


# ---- helpers ---------------------------------------------------------------------------------------------------------


def place() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def seconds(run: Callable[[], object], rounds: int = 10, warm_up: int = 1) -> float:
    """Returns the median seconds of a call, including the device's work."""
    import torch

    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    taken = []
    for turn in range(rounds + warm_up):
        wait()
        start = time.perf_counter()
        run()
        wait()
        if turn >= warm_up:
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


@contextmanager
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp())
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sets(changes: list[str]) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


def command(*words: str) -> None:
    from t2i.cli import main

    status = main(list(words))
    if status:
        raise RuntimeError(f"t2i {' '.join(words)} ended with {status}")


def train(family: str, size: str, run: Path, changes: list[str], rehearse: bool) -> None:
    small = ["train_batch_size=4", "gradient_accumulation_steps=1", *TOY[family]] if rehearse else []
    address = ["--data", "shapes-3" if size != "tiny" else "shapes-2"]
    command("train", family, "--config", f"{family}-{size}", *address, "--run-dir", str(run), *sets([*changes, *small]))


def prepare(family: str, size: str, folder: Path, rehearse: bool) -> list[str]:
    """Returns settings by which a shipped config trains on rendered scenes: `bow` as text encoder, a tokenizer of a few steps."""
    changes = [
        f"data.limit={64 if rehearse else 4000}",
        "validation_n=16",
        "validation_steps=100000",
        "checkpointing_steps=100000",
    ]
    if rehearse:
        changes.append("data.resolution=16")
    if family == "vqvae" and size == "base":
        changes.append("loss.lpips=0")
    if family in ("cgan", "cvae", "prior"):
        changes.append("text.encoder=bow")
    if family == "cgan":
        changes.append("guidance.encoder=none")
    if family in ("cvae", "prior"):
        tokenizer = folder / "tokenizer"
        side = "tiny" if size == "tiny" or rehearse else size
        train("vqvae", side, tokenizer, [*prepare("vqvae", side, folder, rehearse), "max_train_steps=3"], rehearse)
        changes.append(f"tokenizer.path={tokenizer}")
    return changes


def scalars(run: Path, name: str) -> list[float]:
    from t2i.training import journal

    return [record[name] for record in journal.read(run / "journal.jsonl") if isinstance(record.get(name), int | float)]


def show(results: dict[str, Result]) -> str:
    """Returns the results as Markdown, beside the machine's limits."""
    limits = results.get("machine", {})
    lines = ["| case | result |", "|---|---|"]
    for name, result in results.items():
        told = dict(result)
        if "passes_per_s" in told and "bandwidth_gb_s" in limits:
            floor = limits["bandwidth_gb_s"] * 1e9 / (told["weights_mib"] * 2**20)
            told["times_the_bandwidth_floor"] = floor / told["passes_per_s"]
        told.pop("doctor", None)
        cells = "; ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in told.items()
        )
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rehearse", action="store_true", help="toy sizes")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="no case starts after so many")
    parser.add_argument("--only", default="", help="cases whose names begin so")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    todo = cases(given.rehearse)
    if given.case:
        result = todo[given.case][1]()
        (given.out / f"{given.case}.json").write_text(json.dumps(result))
        return
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "results.json"
    results: dict[str, Result] = json.loads(path.read_text()) if path.exists() else {}
    began = time.monotonic()
    environment = os.environ | {"GPU_OUT": str(given.out.resolve()), "T2I_CACHE": str(given.out.resolve() / "cache")}
    for name, (limit, _) in todo.items():
        left = 60 * given.minutes - (time.monotonic() - began)
        allowed = 10 * limit if given.rehearse else min(limit, left)
        done = "error" not in results.get(name, {"error": "not run"})
        if done or allowed <= 0 or not name.startswith(given.only):
            continue
        start = time.monotonic()
        words = [sys.executable, __file__, "--out", str(given.out), "--case", name]
        words += ["--rehearse"] if given.rehearse else []
        with open(given.out / f"{name}.log", "w") as log:
            try:
                status = subprocess.run(words, stdout=log, stderr=log, env=environment, timeout=allowed).returncode
            except subprocess.TimeoutExpired:
                status = f"over its {allowed:.0f} s"
        answer = given.out / f"{name}.json"
        if status == 0:
            results[name] = json.loads(answer.read_text())
        else:
            tail = (given.out / f"{name}.log").read_text().strip().splitlines()[-1:] or [""]
            results[name] = {"error": f"{status}: {tail[0][:200]}"}
        answer.unlink(missing_ok=True)
        path.write_text(json.dumps(results, indent=1))
        (given.out / "results.md").write_text(show(results))
        print(f"{name}: {time.monotonic() - start:.0f} s {'' if status == 0 else results[name]}", flush=True)
    print(show(results))
    failed = [name for name, result in results.items() if "error" in result]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
