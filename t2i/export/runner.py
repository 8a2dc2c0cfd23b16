"""Runs an exported model from its folder, with numpy, and onnxruntime or torch for the graphs.

Axes: B images, R rows of the prior (B captions, then B null captions), S slots, K codes.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from t2i import seeding
from t2i.errors import InputError

Array = NDArray[Any]
Run = Callable[[Mapping[str, Array]], Sequence[Array]]


def _open_onnx(path: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common class
        why = " ".join(str(error).split())[:160]
        raise InputError(f"onnxruntime cannot run {path.name} on this machine ({why}); use --format torch") from error
    known = {one.name for one in session.get_inputs()}  # the file does not have inputs that no output depends on

    def run(inputs: Mapping[str, Array]) -> list[Array]:
        outputs = session.run(None, {name: value for name, value in inputs.items() if name in known})
        return [np.asarray(output) for output in outputs]  # all are dense

    return run


def _open_torch(path: Path, threads: int) -> Run:
    import torch

    torch.set_num_threads(threads)
    module = torch.export.load(path).module()

    def run(inputs: Mapping[str, Array]) -> Sequence[Array]:
        with torch.no_grad():
            output = module(*(torch.from_numpy(np.ascontiguousarray(value)) for value in inputs.values()))
        return [one.numpy() for one in (output if isinstance(output, tuple | list) else (output,))]

    return run


OPENERS: dict[str, Callable[[Path, int], Run]] = {"onnx": _open_onnx, "torch": _open_torch}


class ExportedModel:
    """An exported model: the graphs of a folder that `t2i export` wrote."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self.manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        opener = OPENERS[self.manifest["format"]]
        self._graphs = {name: opener(folder / spec["file"], threads) for name, spec in self.manifest["graphs"].items()}

    def run(self, name: str, **inputs: Array) -> dict[str, Array]:
        """Runs a graph; returns its outputs by name."""
        spec = self.manifest["graphs"][name]
        ordered = {key: inputs[key] for key in spec["inputs"]}
        return dict(zip(spec["outputs"], self._graphs[name](ordered), strict=True))

    def images(self, ids_BT: Array, mask_BT: Array, seeds: Sequence[int]) -> Array:
        """Samples float32 [B, 3, H, W] in about [-1, 1]; the noise is that of `t2i sample` for these seeds of images."""
        text, sampling = {**self.run("text", ids=ids_BT, mask=mask_BT), "mask": mask_BT}, self.manifest["sampling"]
        if "decoder" in self._graphs:
            return self.run("decoder", codes=self.codes(text, seeds))["images"]
        noise = [seeding.normal(seed, "sample/z", [0], sampling["noise"])[0] for seed in seeds]
        return self.run("generator", **text, noise=np.stack(noise))["images"]

    def codes(self, text: Mapping[str, Array], seeds: Sequence[int]) -> Array:
        """Samples the codes of a prior, int64 [B, S], one group of slots after the other."""
        plan, count = self.manifest["sampling"], len(seeds)
        branches = 2 if any(g != 1 for g in plan["guidance"]) else 1
        null = np.repeat(np.arange(branches) == 1, count)
        state = self.run("prefill", **{name: np.concatenate([x] * branches) for name, x in text.items()}, null=null)
        logits = state.pop("logits", None)
        order = self._order(seeds)
        codes = np.zeros((count, plan["slots"]), np.int64)
        before, start = order[:, :0], 0
        for size, guidance in zip(plan["groups"], plan["guidance"], strict=True):
            now = order[:, start : start + size]
            if logits is None or start:
                settled = np.take_along_axis(codes, before, axis=1)
                inputs = {"codes": np.concatenate([settled] * branches), "slots": np.concatenate([before] * branches)}
                if plan["queries"]:
                    inputs["queries"] = np.concatenate([now] * branches)
                step = self.run("step", **inputs, **state)
                logits, state = step["logits"], {**state, "keys": step["new_keys"], "values": step["new_values"]}
            caption, other = logits[:count], logits[-count:]
            np.put_along_axis(codes, now, self._draw(other + guidance * (caption - other), now, seeds), axis=1)
            before, start = now, start + size
        return codes

    def _order(self, seeds: Sequence[int]) -> NDArray[np.int64]:
        plan = self.manifest["sampling"]
        if plan["order"] == "raster":
            return np.tile(np.arange(plan["slots"]), (len(seeds), 1))
        draws = [seeding.uniform(seed, "sample/order", [0], plan["slots"])[0] for seed in seeds]
        return np.argsort(np.stack(draws), axis=1, kind="stable")

    def _draw(self, logits: Array, slots: NDArray[np.int64], seeds: Sequence[int]) -> NDArray[np.int64]:
        """Draws codes from logits [B, n, K]: the arg max of logits plus Gumbel noise among the codes of top-k and top-p."""
        plan = self.manifest["sampling"]
        temperature, scores = plan["temperature"], logits
        if temperature:
            noise = [seeding.gumbel(seed, row, plan["codes"]) for seed, row in zip(seeds, slots, strict=True)]
            scores = logits + np.float32(temperature) * np.stack(noise).astype(np.float32)
        least = -np.sort(-logits, axis=-1)[..., : plan["top_k"] or plan["codes"]]
        if temperature and plan["top_p"] < 1:
            p = np.exp((least - least[..., :1]) / temperature)
            before = np.cumsum(p, axis=-1) - p
            least = np.where(before < plan["top_p"] * p.sum(axis=-1, keepdims=True), least, np.inf)
        return np.where(logits < least.min(axis=-1, keepdims=True), -np.inf, scores).argmax(axis=-1)


def measure(folder: str, request: str, result: str) -> None:
    """Samples the images of a request one at a time; writes the images, the seconds of each and the peak memory.

    Args:
        request: a JSON file with ids, mask and seeds of captions, and the number of threads.
        result: an .npz file.
    """
    inputs = json.loads(Path(request).read_text("utf-8"))
    model = ExportedModel(Path(folder), inputs["threads"])
    ids, mask, seeds = np.array(inputs["ids"], np.int64), np.array(inputs["mask"], bool), inputs["seeds"]
    images, seconds, memory = [], [], 0
    model.images(ids[:1], mask[:1], seeds[:1])  # warm-up: the first run of a session also plans its memory
    for i in range(len(seeds)):
        start = time.perf_counter()
        images.append(model.images(ids[i : i + 1], mask[i : i + 1], seeds[i : i + 1])[0])
        seconds.append(time.perf_counter() - start)
        memory = max(memory, psutil.Process().memory_info().rss)
    np.savez(result, images=np.stack(images), seconds=np.array(seconds), memory=np.array(memory))
