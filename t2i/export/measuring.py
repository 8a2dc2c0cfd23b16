"""Measures a model and its export: time and memory per image, and the share of correct images."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import psutil
import torch

from t2i.data import View, open_dataset
from t2i.data.shapes.captions import Spec, parse
from t2i.data.shapes.oracle import judge, read
from t2i.errors import InputError
from t2i.export.exporting import PROMPTS
from t2i.export.text import text_part
from t2i.images import ImageArray, to_uint8
from t2i.pipeline import TextToImagePipeline
from t2i.sampling.prompts import image_seed


class MeasuredModel(NamedTuple):
    """Size, time and memory of a model, and its strict faithfulness."""

    bytes: int
    seconds: np.ndarray  # for each image
    memory: int  # bytes of the whole process
    strict: float | None  # None: the oracle cannot read the captions


def captions_of(pipe: TextToImagePipeline, n: int) -> list[str]:
    """Returns held-out captions of the embedded data, or repeated example prompts for other data."""
    address = str(pipe.manifest["config"]["data"]["address"])
    if address.startswith("shapes-"):
        data = open_dataset(address, "val", View(limit=n))
        return [data.captions[i][0] for i in range(n)]
    return [PROMPTS[i % len(PROMPTS)] for i in range(n)]


def measure_pipeline(pipe: TextToImagePipeline, captions: Sequence[str]) -> MeasuredModel:
    """Measures the model in this process, one image at a time."""
    images, seconds = [], []
    pipe(captions[0], seed=0)
    for caption in captions:
        start = time.perf_counter()
        images.append(pipe(caption, seed=0, output_type="uint8").images[0])
        seconds.append(time.perf_counter() - start)
    tensors = [tensor for _, part in pipe.sampler.components().values() for tensor in part.values()]
    size = sum(tensor.nbytes for tensor in tensors)
    return MeasuredModel(size, np.array(seconds), psutil.Process().memory_info().rss, strict(images, captions))


def measure_export(pipe: TextToImagePipeline, folder: Path, captions: Sequence[str], size: int) -> MeasuredModel:
    """Measures the exported folder in another process without this package's networks, one image at a time.

    Raises:
        InputError: the export does not run on this machine.
    """
    ids, mask = text_part(pipe.text_encoder, captions[:1]).tokenize(captions)
    seeds = [image_seed(0, caption, 0) for caption in captions]
    inputs = {"ids": ids.tolist(), "mask": mask.tolist(), "seeds": seeds, "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as place:
        request, result = Path(place) / "request.json", Path(place) / "result.npz"
        request.write_text(json.dumps(inputs))
        code = "import sys; from t2i.export.runner import measure; measure(*sys.argv[1:])"
        argv = [sys.executable, "-c", code, str(folder), str(request), str(result)]
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
            raise InputError(
                f"{folder} does not run on this machine ({why}); export it with another --format or --quantize"
            )
        with np.load(result) as arrays:
            images, seconds, memory = arrays["images"], arrays["seconds"], int(arrays["memory"])
    return MeasuredModel(size, seconds, memory, strict(list(to_uint8(torch.from_numpy(images))), captions))


def strict(images: Sequence[ImageArray], captions: Sequence[str]) -> float | None:
    """Returns the share of images that match their whole caption, or None if the oracle cannot read the captions."""
    specs = [parse(caption) for caption in captions]
    if any(spec is None for spec in specs):
        return None
    return float(judge(read(np.stack(images)), cast(list[Spec], specs))["strict"].mean())
