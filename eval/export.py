"""Exports a model as graphs that run without this package, and compares their size, speed and memory with the model's.

    t2i export runs/cgan exported/
    t2i export prior phone/ --quantize int8
    t2i export runs/prior exported/ --format torch -n 0
    t2i export prior page/ --page && python -m http.server -d page

docs/export.md describes the folder, and has a program that samples from it with only numpy and onnxruntime.
"""

from typing import TYPE_CHECKING

import numpy as np

from t2i.cli import run_program
from t2i.console import shown_progress, table
from t2i.errors import InputError
from t2i.export.options import ModelExportOptions
from t2i.files import new_folder
from t2i.hardware import prepare_cpu
from t2i.names import counted

if TYPE_CHECKING:
    from t2i.export.measuring import MeasuredModel

HEAD = ("", "size", "p50", "p95", "memory", "difference", "strict")


def row(name: str, measured: "MeasuredModel", difference: str) -> list[str]:
    """Returns a line of the table."""
    p50, p95 = (f"{1000 * np.quantile(measured.seconds, share):.1f} ms" for share in (0.5, 0.95))
    strict = "" if measured.strict is None else f"{measured.strict:.3f}"
    return [name, f"{measured.bytes / 1e6:.1f} MB", p50, p95, f"{measured.memory / 1e6:.0f} MB", difference, strict]


def main(options: ModelExportOptions) -> None:
    prepare_cpu()
    # slow to import, so not at the top
    from t2i.export.exporting import export
    from t2i.export.measuring import captions_of, measure_export, measure_pipeline
    from t2i.export.page import write_page
    from t2i.export.writing import refuse_missing
    from t2i.pipeline import TextToImagePipeline

    # The model, and a place for the export
    if options.out.exists():
        raise InputError(f"{options.out} exists; name a new folder")
    if options.page and options.format != "onnx":
        raise InputError(f"--page runs ONNX files, but --format is {options.format}; drop one of the two")
    refuse_missing(options.format)
    pipe = TextToImagePipeline.from_pretrained(options.run)
    captions = captions_of(pipe, options.n)

    # The export, and measurements of both on the same captions
    with shown_progress() as tick:
        model = measure_pipeline(pipe, captions) if captions else None
        with new_folder(options.out) as folder:
            written = export(pipe, options, folder, tick)
            if options.page:
                write_page(folder, pipe, captions_of(pipe, 1)[0])
            exported = measure_export(pipe, folder, captions, written.bytes) if captions else None

    # Sizes of the parts, and a table of the measurements
    for name, part in written.parts.items():
        print(f"{part.file:<18}{part.bytes / 1e6:6.1f} MB, difference {written.differences[name]:.1e}")
    if model is not None and exported is not None:
        largest = f"{max(written.differences.values()):.1e}"
        table(HEAD, [row("t2i", model, ""), row(f"{options.format}, {options.quantize}", exported, largest)])
        print(f"per image, {counted(len(captions), 'image')} one at a time; memory of the whole process")
    print(f"wrote {options.out}")
    if options.page:
        print(f"python -m http.server -d {options.out} shows its page at http://localhost:8000")


if __name__ == "__main__":  # python -m t2i.eval.export
    run_program("export")
