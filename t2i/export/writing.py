"""Writes graphs as ONNX files or torch.export programs, with weights in 32, 16 or 8 bits, and the manifest.

Graphs convert narrow weights to float32 and compute in float32, which every processor supports. onnxruntime converts them once,
when it opens a file, so speed and memory are those of float32 weights.
"""

import json
import logging
import warnings
from collections.abc import Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from t2i.errors import InputError
from t2i.export.graphs import Graph
from t2i.export.options import Format, Quantize
from t2i.names import installed

SUFFIX: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2"}
NEEDED: dict[Format, tuple[str, ...]] = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": ()}
MANIFEST = "manifest.json"
LEAST = 1024  # smaller weights stay in float32
INLINE_BYTES = 2**30  # protobuf holds 2 GiB; larger ONNX files have their weights in a second file


def refuse_missing(format: Format) -> None:
    """Raises InputError if a package that this format needs is missing."""
    if missing := [name for name in NEEDED[format] if not installed(name)]:
        raise InputError(
            f"--format {format} needs {', '.join(missing)}: pip install 't2i[export]'; --format torch needs nothing more"
        )


class Narrow(nn.Module):
    """A module whose large weights are stored in 16 or 8 bits and converted to float32 when it runs.

    With 8 bits, each output channel of a matrix, kernel or table has its own scale, and codes in -127 ... 127.
    """

    def __init__(self, module: nn.Module, quantize: Quantize) -> None:
        super().__init__()
        self._held = [module]  # in a list, so that it is no submodule and its weights are not part of the graph
        self._scaled: dict[str, str] = {}
        weights = module.state_dict()  # without computed buffers such as angles, whose rounding would cost too much
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            tensor, buffer = tensor.detach(), name.replace(".", "__")
            narrow = name in weights and tensor.dtype == torch.float32 and tensor.numel() >= LEAST
            if narrow and quantize == "int8" and tensor.ndim > 1:
                scale = tensor.flatten(1).abs().amax(dim=1).clamp(min=1e-12) / 127
                scale = scale.view(-1, *[1] * (tensor.ndim - 1))
                self.register_buffer(f"{buffer}__scale", scale)
                self._scaled[name] = f"{buffer}__scale"
                tensor = (tensor / scale).round().to(torch.int8)
            elif narrow:
                tensor = tensor.half()
            self.register_buffer(buffer, tensor.contiguous())

    def forward(self, *inputs: Tensor) -> Any:
        module = self._held[0]
        names = [name for name, _ in [*module.named_parameters(), *module.named_buffers()]]
        return functional_call(module, {name: self._wide(name) for name in names}, inputs)

    def _wide(self, name: str) -> Tensor:
        stored = self.get_buffer(name.replace(".", "__"))
        if name in self._scaled:
            return stored.float() * self.get_buffer(self._scaled[name])
        return stored.float() if stored.dtype == torch.float16 else stored


class WrittenGraph(NamedTuple):
    """A graph on the disk."""

    file: str
    bytes: int
    described: dict[str, Any]  # entry of the manifest


def write_graph(graph: Graph, path: Path, format: Format, quantize: Quantize) -> WrittenGraph:
    """Writes a graph with a free batch size to `path` plus the suffix of the format."""
    path = path.with_name(path.name + SUFFIX[format])
    module = graph.module if quantize == "none" else Narrow(graph.module, quantize)
    free = {name: {0: "batch", **graph.free.get(name, {})} for name in graph.inputs}
    sizes = {name: torch.export.Dim(name) for axes in free.values() for name in axes.values()}
    shapes = tuple({axis: sizes[size] for axis, size in axes.items()} for axes in free.values())
    # contiguous, since torch.export would derive constraints on sizes from other strides
    examples = tuple(value.clone(memory_format=torch.contiguous_format) for value in graph.inputs.values())
    with torch.no_grad(), _quiet():
        shapes = shapes if not isinstance(module, Narrow) else (shapes,)
        program = torch.export.export(module, examples, dynamic_shapes=shapes, strict=False)
        if format == "torch":
            torch.export.save(program, path)
        else:
            _write_onnx(program, graph, path)
    return WrittenGraph(path.name, _size(path), _described(graph, program, free, path.name))


def _write_onnx(program: torch.export.ExportedProgram, graph: Graph, path: Path) -> None:
    onnx_program = torch.onnx.export(
        program, dynamo=True, input_names=list(graph.inputs), output_names=list(graph.outputs), verbose=False
    )
    assert onnx_program is not None
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    onnx_program.save(path, external_data=size > INLINE_BYTES)


def _size(path: Path) -> int:
    """Returns the bytes of a graph's files; weights may be in a second file."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def _described(
    graph: Graph, program: torch.export.ExportedProgram, free: Mapping[str, Mapping[int, str]], file: str
) -> dict[str, Any]:
    """Returns names, types and shapes of inputs and outputs; a free size is a name or a sum of names."""
    names: dict[str, str] = {}
    nodes = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    inputs = {name: nodes[used] for name, used in zip(graph.inputs, program.graph_signature.user_inputs, strict=True)}
    for name, axes in free.items():
        names |= {str(inputs[name].shape[axis]): size for axis, size in axes.items()}

    def described(value: Any) -> dict[str, Any]:
        shape = [size if isinstance(size, int) else _renamed(str(size), names) for size in value.shape]
        return {"dtype": str(value.dtype).removeprefix("torch."), "shape": shape}

    outputs = zip(graph.outputs, program.graph_signature.user_outputs, strict=True)
    return {
        "file": file,
        "inputs": {name: described(value) for name, value in inputs.items()},
        "outputs": {name: described(nodes[used]) for name, used in outputs},
    }


def _renamed(size: str, names: Mapping[str, str]) -> str:
    for symbol in sorted(names, key=len, reverse=True):
        size = size.replace(symbol, names[symbol])
    return size


@contextmanager
def _quiet() -> Any:
    """Suppresses progress and warnings of the exporter."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(before)


def write_manifest(folder: Path, values: Mapping[str, Any]) -> None:
    (folder / MANIFEST).write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", "utf-8")
