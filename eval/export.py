"""Writes a model as graphs that run without this package, and measures them beside the model itself.

    t2i export runs/cgan exported/
    t2i export prior phone/ --quantize int8
    t2i export runs/prior exported/ --format torch -n 0
    t2i export prior page/ --page && python -m http.server -d page

docs/export.md has the layout of the folder, and a program that samples from it with numpy and onnxruntime alone.
"""

from typing import TYPE_CHECKING

import numpy as np

from t2i.cli import run_program
from t2i.console import shown_progress, table
from t2i.errors import InputError
from t2i.export.options import ModelExportOptions
from t2i.files import new_folder
from t2i.hardware import prepare_cpu

if TYPE_CHECKING:
    from t2i.export.measuring import MeasuredModel

HEAD = ("", "size", "p50", "p95", "memory", "difference", "strict")


def row(name: str, measured: "MeasuredModel", difference: str) -> list[str]:
    """One line of the table."""
    p50, p95 = (f"{1000 * np.quantile(measured.seconds, share):.1f} ms" for share in (0.5, 0.95))
    strict = "" if measured.strict is None else f"{measured.strict:.3f}"
    return [name, f"{measured.bytes / 1e6:.1f} MB", p50, p95, f"{measured.memory / 1e6:.0f} MB", difference, strict]


def main(options: ModelExportOptions) -> None:
    prepare_cpu()
    # slow to import: a mistake above is told first
    from t2i.export.exporting import export
    from t2i.export.measuring import captions_of, measure_export, measure_pipeline
    from t2i.export.page import write_page
    from t2i.export.writing import refuse_missing
    from t2i.pipeline import TextToImagePipeline

    if options.out.exists():
        raise InputError(f"{options.out} exists; name a folder that does not")
    if options.page and options.format != "onnx":
        raise InputError(f"--page runs ONNX files, and --format is {options.format}; leave one of them out")
    refuse_missing(options.format)
    pipe = TextToImagePipeline.from_pretrained(options.run)
    captions = captions_of(pipe, options.n)
    with shown_progress() as tick:
        own = measure_pipeline(pipe, captions) if captions else None
        with new_folder(options.out) as folder:
            made = export(pipe, options, folder, tick)
            if options.page:
                write_page(folder, pipe, captions_of(pipe, 1)[0])
            theirs = measure_export(pipe, folder, captions, made.bytes) if captions else None
    for name, part in made.parts.items():
        print(f"{part.file:<18}{part.bytes / 1e6:6.1f} MB, difference {made.differences[name]:.1e}")
    if own is not None and theirs is not None:
        worst = f"{max(made.differences.values()):.1e}"
        table(HEAD, [row("t2i", own, ""), row(f"{options.format}, {options.quantize}", theirs, worst)])
        print(f"per image, {len(captions)} of them one at a time; memory is of the whole process")
    print(f"wrote {options.out}")
    if options.page:
        print(f"python -m http.server -d {options.out} shows its page at http://localhost:8000")


if __name__ == "__main__":  # python -m t2i.eval.export
    run_program("export")
