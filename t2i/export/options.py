"""Options of `t2i export`. Imports no torch."""

from pathlib import Path
from typing import Literal

from t2i.config.options import Options, argument, option

Format = Literal["onnx", "torch"]
Quantize = Literal["none", "fp16", "int8"]


class ModelExportOptions(Options):
    """Export a model as graphs that run without t2i, and compare them with the model."""

    run: str = argument(
        "A run of cgan, cvae or prior, a saved pipeline, or a model that ships with t2i.", metavar="RUN"
    )
    out: Path = argument("The folder to write, which must not exist.", metavar="OUT")
    format: Format = option("onnx", "ONNX files, or programs of torch.export.")
    quantize: Quantize = option("none", "Type of the stored weights; the model computes in float32.")
    page: bool = option(False, "Add a page that samples in a browser with onnxruntime-web; see docs/export.md.")
    n: int = option(50, "Images to measure time, memory and scores on; 0: none.", metavar="N", short="-n", ge=0)
