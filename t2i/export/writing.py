"""Writes graphs: ONNX files or programs of torch.export, with weights in 32, 16 or 8 bits, and the manifest.

Weights of fewer bits are widened inside the graph and computed with in float32, so no processor lacks an operator for them.
onnxruntime widens them once, when a file is opened: it then runs as fast as with whole weights, and takes as much memory.
"""

import json
import logging
import warnings
from collections.abc import Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from t2i.errors import InputError
from t2i.export.graphs import Graph
from t2i.export.options import Format, Quantize

SUFFIX: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2"}
NEEDED: dict[Format, tuple[str, ...]] = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": ()}
MANIFEST = "manifest.json"
LEAST = 1024  # values of a weight that is worth fewer bits
INLINE_BYTES = 2**30  # protobuf holds 2 GiB; beyond this an ONNX file keeps its weights in a file beside it


def refuse_missing(format: Format) -> None:
    """Raises InputError when a package is missing that writes or runs this format."""
    if missing := [name for name in NEEDED[format] if find_spec(name) is None]:
        raise InputError(
            f"--format {format} needs {', '.join(missing)}: pip install 't2i[export]'; --format torch needs nothing more"
        )


class Narrow(nn.Module):
    """A module whose large weights are stored in 16 or 8 bits and widened when it runs.

    In 8 bits, each output channel of a matrix, kernel or table has a scale of its own and codes -127 ... 127.
    """

    def __init__(self, module: nn.Module, quantize: Quantize) -> None:
        super().__init__()
        self._held = [module]  # in a list, as no submodule: its own weights are not part of the graph
        self._scaled: dict[str, str] = {}
        kept = module.state_dict()  # what is not, is computed: angles, which would lose more than they save
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            tensor, own = tensor.detach(), name.replace(".", "__")
            narrow = name in kept and tensor.dtype == torch.float32 and tensor.numel() >= LEAST
            if narrow and quantize == "int8" and tensor.ndim > 1:
                scale = tensor.flatten(1).abs().amax(dim=1).clamp(min=1e-12) / 127
                scale = scale.view(-1, *[1] * (tensor.ndim - 1))
                self.register_buffer(f"{own}__scale", scale)
                self._scaled[name] = f"{own}__scale"
                tensor = (tensor / scale).round().to(torch.int8)
            elif narrow:
                tensor = tensor.half()
            self.register_buffer(own, tensor.contiguous())

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
    """Writes one graph with a free batch size; `path` has no suffix yet."""
    path = path.with_name(path.name + SUFFIX[format])
    module = graph.module if quantize == "none" else Narrow(graph.module, quantize)
    free = {name: {0: "batch", **graph.free.get(name, {})} for name in graph.inputs}
    sizes = {name: torch.export.Dim(name) for axes in free.values() for name in axes.values()}
    shapes = tuple({axis: sizes[size] for axis, size in axes.items()} for axes in free.values())
    # strides that tell nothing of sizes, or the program would ask for sizes that differ from them
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
    made = torch.onnx.export(
        program, dynamo=True, input_names=list(graph.inputs), output_names=list(graph.outputs), verbose=False
    )
    assert made is not None
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    made.save(path, external_data=size > INLINE_BYTES)


def _size(path: Path) -> int:
    """Bytes of a graph's files: weights may be in a second one."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def _described(
    graph: Graph, program: torch.export.ExportedProgram, free: Mapping[str, Mapping[int, str]], file: str
) -> dict[str, Any]:
    """Names, types and shapes of inputs and outputs; a free size is a name or a sum of names."""
    names: dict[str, str] = {}
    nodes = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    inputs = {name: nodes[used] for name, used in zip(graph.inputs, program.graph_signature.user_inputs, strict=True)}
    for name, axes in free.items():
        names |= {str(inputs[name].shape[axis]): size for axis, size in axes.items()}

    def told(value: Any) -> dict[str, Any]:
        shape = [size if isinstance(size, int) else _renamed(str(size), names) for size in value.shape]
        return {"dtype": str(value.dtype).removeprefix("torch."), "shape": shape}

    outputs = zip(graph.outputs, program.graph_signature.user_outputs, strict=True)
    return {
        "file": file,
        "inputs": {name: told(value) for name, value in inputs.items()},
        "outputs": {name: told(nodes[used]) for name, used in outputs},
    }


def _renamed(size: str, names: Mapping[str, str]) -> str:
    for symbol in sorted(names, key=len, reverse=True):
        size = size.replace(symbol, names[symbol])
    return size


@contextmanager
def _quiet() -> Any:
    """Without the exporter's progress and its notes on its own parts."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(before)


def write_manifest(folder: Path, values: Mapping[str, Any]) -> None:
    (folder / MANIFEST).write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", "utf-8")
