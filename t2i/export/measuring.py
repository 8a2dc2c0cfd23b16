"""What an image of a model costs, as it is and exported: time, memory, and how many images show what their captions say."""

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
    """What one image costs, and how many show their captions; None: no data says what captions ask for."""

    bytes: int
    seconds: np.ndarray  # an image
    memory: int  # bytes of the whole process
    strict: float | None


def captions_of(pipe: TextToImagePipeline, n: int) -> list[str]:
    """Captions of the embedded data that the run was not trained on, else a few of no data."""
    address = str(pipe.manifest["config"]["data"]["address"])
    if address.startswith("shapes-"):
        data = open_dataset(address, "val", View(limit=n))
        return [data.captions[i][0] for i in range(n)]
    return [PROMPTS[i % len(PROMPTS)] for i in range(n)]


def measure_pipeline(pipe: TextToImagePipeline, captions: Sequence[str]) -> MeasuredModel:
    """The model itself, in this process, an image at a time."""
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
    """The exported folder, in a process of its own without this package's networks, an image at a time.

    Raises:
        InputError: it does not run on this machine.
    """
    ids, mask = text_part(pipe.text_encoder, captions[:1]).tokenize(captions)
    seeds = [image_seed(0, caption, 0) for caption in captions]
    asked = {"ids": ids.tolist(), "mask": mask.tolist(), "seeds": seeds, "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as place:
        request, result = Path(place) / "request.json", Path(place) / "result.npz"
        request.write_text(json.dumps(asked))
        code = "import sys; from t2i.export.runner import measure; measure(*sys.argv[1:])"
        argv = [sys.executable, "-c", code, str(folder), str(request), str(result)]
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
            raise InputError(
                f"{folder} does not run on this machine ({why}); export it with another --format or --quantize"
            )
        with np.load(result) as found:
            images, seconds, memory = found["images"], found["seconds"], int(found["memory"])
    return MeasuredModel(size, seconds, memory, strict(list(to_uint8(torch.from_numpy(images))), captions))


def strict(images: Sequence[ImageArray], captions: Sequence[str]) -> float | None:
    """The share of images in which everything that the caption says is right; None: no oracle reads the captions."""
    specs = [parse(caption) for caption in captions]
    if any(spec is None for spec in specs):
        return None
    return float(judge(read(np.stack(images)), cast(list[Spec], specs))["strict"].mean())
