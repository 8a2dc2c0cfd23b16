"""A pipeline becomes a folder of graphs; the folder is run and compared with the pipeline.

manifest.json               inputs, outputs, shapes and types of each graph; how captions become ids; how codes are sampled
tokenizer.json              words or byte pairs and their ids
text.onnx                   ids, mask -> tokens, pooled
generator.onnx              tokens, mask, pooled, noise -> images: all that a cgan or a cvae is
prefill.onnx, step.onnx     a prior: captions -> keys and values; settled codes -> logits of the next slots
decoder.onnx                codes -> images
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
PROMPTS = ("a small red circle", "a photo of a bird", "two dogs on a beach")  # examples: any captions do
BATCHES = (1, EXAMPLES)


class Exported(NamedTuple):
    """A folder that was written, part by part."""

    parts: dict[str, WrittenGraph]
    differences: dict[str, float]  # the largest of a part's outputs, at the batch sizes BATCHES

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts.values())


def export(pipe: TextToImagePipeline, options: ModelExportOptions, folder: Path, tick: Tick) -> Exported:
    """Writes an existing empty folder, and runs each graph beside the module that it was made of.

    Raises:
        InputError: this family or this text encoder cannot be exported.
    """
    examples = list(PROMPTS)
    text = text_part(pipe.text_encoder, examples)
    found = parts_of(pipe, pipe.text_encoder.encode(examples))
    graphs = {"text": text.graph, **found.graphs}
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
        "sampling": found.sampling,
    }
    write_manifest(folder, manifest)
    model = ExportedModel(folder)
    return Exported(written, {name: difference(graph, name, model) for name, graph in graphs.items()})


def difference(graph: Graph, name: str, model: ExportedModel) -> float:
    """The largest difference of any output from the module's own, over the batch sizes BATCHES."""
    worst = 0.0
    for batch in BATCHES:
        given = {key: value[:batch] for key, value in graph.inputs.items()}
        with torch.no_grad():
            found = graph.module(*given.values())
        own = dict(zip(graph.outputs, found if isinstance(found, tuple) else (found,), strict=True))
        theirs = model.run(name, **{key: value.numpy() for key, value in given.items()})
        for key, value in own.items():
            if value.shape != theirs[key].shape:
                raise RuntimeError(f"{name}: {key} has the shape {theirs[key].shape} and not {tuple(value.shape)}")
            worst = max(worst, float(np.abs(value.float().numpy() - theirs[key].astype(np.float32)).max()))
    return worst
