"""The options of `t2i export`. Imports no torch."""

from pathlib import Path
from typing import Literal

from t2i.config.options import Options, argument, option

Format = Literal["onnx", "torch"]
Quantize = Literal["none", "fp16", "int8"]


class ModelExportOptions(Options):
    """Write a model as graphs that run without t2i, and measure them beside the model itself."""

    run: str = argument(
        "A run of cgan, cvae or prior, a saved pipeline, or a model that ships with t2i.", metavar="RUN"
    )
    out: Path = argument("The folder to write, which must not exist.", metavar="OUT")
    format: Format = option("onnx", "ONNX files, or programs of torch.export.")
    quantize: Quantize = option("none", "Bits of the stored weights; they are computed with in float32.")
    page: bool = option(False, "Also a page that samples in a browser, by onnxruntime-web; docs/export.md.")
    n: int = option(50, "Images that time, memory and scores are measured on; 0: none.", metavar="N", short="-n", ge=0)
