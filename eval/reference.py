"""Computes statistics of real images, to score any number of models against without reading the images again.

    t2i eval reference coco:/data/coco --split val -n 30000 --resolution 256 --inception weights.pth --out coco.safetensors
    t2i eval score runs/big --against coco.safetensors --inception weights.pth

Without --resolution, images in a folder, a .tar or an .npz are not resized. docs/scoring.md describes the file.
"""

from t2i.cli import run_program
from t2i.console import progress_of
from t2i.data import View
from t2i.distributed import launched_ranks
from t2i.errors import InputError
from t2i.files import at_home, refuse_unwritable
from t2i.hardware import device, prepare_cpu
from t2i.names import counted
from t2i.scoring.images.collection import Images, dataset_images
from t2i.scoring.images.reference import make_reference
from t2i.scoring.images.sources import open_images
from t2i.scoring.options import ReferenceOptions
from t2i.scoring.selection import open_extractors


def images_of(options: ReferenceOptions) -> Images:
    """Opens a data set at a resolution, or the images of a file or folder without resizing them."""
    if options.resolution is not None:
        return dataset_images(options.data, options.split, options.n, View(options.resolution))
    if not at_home(options.data).exists():
        raise InputError(
            f"{options.data} is not a folder, .tar or .npz; for a data set, set the size of its images with --resolution"
        )
    return open_images(options.data, options.n, options.skip_broken)


def main(options: ReferenceOptions) -> None:
    prepare_cpu()
    out = options.out
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out}: statistics need the suffix .safetensors; name a .safetensors file")
    refuse_unwritable(out, "a .safetensors file", "--out")

    # Images and extractors, then the statistics in one pass, by all processes
    with launched_ranks() as ranks, progress_of(ranks.is_main) as tick:
        images = images_of(options)
        opened = open_extractors(options, device())
        extractors = opened if options.embedded or options.scorer is not None else opened[1:]
        if not extractors:
            raise InputError("no extractor is named; add --inception FILE, --clip DIR, --dinov2 DIR or --embedded")
        make_reference(images, extractors, out, options.save_features, tick, ranks)
        if ranks.is_main:
            names = ", ".join(extractor.name for extractor in extractors)
            print(f"wrote {out}: {counted(len(images), 'image')} of {images.name} by {names}")


if __name__ == "__main__":  # python -m t2i.eval.reference
    run_program("eval", "reference")
