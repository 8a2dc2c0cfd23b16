"""Exports a pipeline to a folder of graphs, and compares their outputs with those of the pipeline's modules.

manifest.json               inputs, outputs, shapes and types of each graph; rules for tokenizing and for sampling codes
tokenizer.json              words or byte pairs and their ids
text.onnx                   ids, mask -> tokens, pooled
generator.onnx              cgan, cvae: tokens, mask, pooled, noise -> images
prefill.onnx, step.onnx     prior: captions -> keys and values; settled codes -> logits of the next slots
decoder.onnx                prior: codes -> images
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from t2i import __version__
from t2i.console import Tick
from t2i.export.graphs import EXAMPLES, Graph, parts_of
from t2i.export.options import ModelExportOptions
from t2i.export.runner import ExportedModel
from t2i.export.text import text_part
from t2i.export.writing import WrittenGraph, write_graph, write_manifest
from t2i.pipeline import TextToImagePipeline

IMAGES = "float32 [batch, 3, height, width]; clip to -1 ... 1, then (x + 1) * 127.5 is the level of a pixel"
PROMPTS = ("a small red circle", "a photo of a bird", "two dogs on a beach")  # example inputs
BATCHES = (1, EXAMPLES)


class Exported(NamedTuple):
    """The written graphs, by name."""

    parts: dict[str, WrittenGraph]
    differences: dict[str, float]  # largest difference of any output from the module's, at the batch sizes BATCHES

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts.values())


def export(pipe: TextToImagePipeline, options: ModelExportOptions, folder: Path, tick: Tick) -> Exported:
    """Writes the graphs into an existing empty folder, and compares each with its module.

    Raises:
        InputError: this family or this text encoder cannot be exported.
    """
    examples = list(PROMPTS)
    text = text_part(pipe.text_encoder, examples)
    sampler = parts_of(pipe, pipe.text_encoder.encode(examples))
    graphs = {"text": text.graph, **sampler.graphs}
    written: dict[str, WrittenGraph] = {}
    for name, graph in graphs.items():
        tick("graphs", len(written), len(graphs))
        written[name] = write_graph(graph, folder / name, options.format, options.quantize)
    tick("graphs", len(graphs), len(graphs))
    (folder / "tokenizer.json").write_text(text.file, "utf-8")
    manifest = {
        "t2i": __version__,
        "format": options.format,
        "quantize": options.quantize,
        "family": pipe.family,
        "resolution": pipe.manifest["config"]["data"]["resolution"],
        "checkpoint": {key: pipe.manifest.get(key) for key in ("step", "images_seen", "config_hash")},
        "text": {"file": "tokenizer.json", **text.described},
        "graphs": {name: part.described for name, part in written.items()},
        "images": IMAGES,
        "sampling": sampler.sampling,
    }
    write_manifest(folder, manifest)
    model = ExportedModel(folder)
    return Exported(written, {name: difference(graph, name, model) for name, graph in graphs.items()})


def difference(graph: Graph, name: str, model: ExportedModel) -> float:
    """Returns the largest difference of any output from that of the module, over the batch sizes BATCHES."""
    largest = 0.0
    for batch in BATCHES:
        inputs = {key: value[:batch] for key, value in graph.inputs.items()}
        with torch.no_grad():
            output = graph.module(*inputs.values())
        expected = dict(zip(graph.outputs, output if isinstance(output, tuple) else (output,), strict=True))
        actual = model.run(name, **{key: value.numpy() for key, value in inputs.items()})
        for key, value in expected.items():
            if value.shape != actual[key].shape:
                raise RuntimeError(f"{name}: {key} has the shape {actual[key].shape} and not {tuple(value.shape)}")
            largest = max(largest, float(np.abs(value.float().numpy() - actual[key].astype(np.float32)).max()))
    return largest
