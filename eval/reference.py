"""Statistics of real pictures, made once: any number of models are scored against them without seeing the pictures again.

    t2i eval reference coco:/data/coco --split val -n 30000 --resolution 256 --inception weights.pth --out coco.safetensors
    t2i eval score runs/big --against coco.safetensors --inception weights.pth

Without --resolution, pictures in a folder, a .tar or an .npz are taken as they are. docs/scoring.md says what is in the file.
"""

from pathlib import Path
from typing import Any

from t2i.console import progress_of
from t2i.data import View
from t2i.distributed import launched_ranks
from t2i.errors import InputError
from t2i.extractors import Resize
from t2i.hardware import device, prepare_cpu
from t2i.scoring.images.collection import Pictures, dataset_pictures
from t2i.scoring.images.reference import make_reference
from t2i.scoring.images.sources import open_pictures
from t2i.scoring.options import Options
from t2i.scoring.selection import open_extractors


def pictures_of(data: str, split: str, n: int | None, resolution: int | None, skip_broken: bool) -> Pictures:
    """A data set at a resolution, or pictures as they lie in a file or folder."""
    if resolution is not None:
        return dataset_pictures(data, split, n, View(resolution))
    if not Path(data).expanduser().exists():
        raise InputError(
            f"{data} is no folder, .tar or .npz; of a data set say the size of its pictures by --resolution"
        )
    return open_pictures(data, n, skip_broken)


def main(
    data: str,
    split: str,
    n: int | None,
    resolution: int | None,
    files: dict[str, Any],
    resize: Resize,
    embedded: bool,
    features: bool,
    skip_broken: bool,
    out: Path,
) -> None:
    prepare_cpu()
    options = Options(**files, resize=resize)
    if out.suffix != ".safetensors" or out.is_dir() or not out.parent.is_dir():
        raise InputError(f"--out {out} cannot be written; name a .safetensors file in an existing folder")
    with launched_ranks() as ranks, progress_of(ranks.is_main) as tick:
        pictures = pictures_of(data, split, n, resolution, skip_broken)
        opened = open_extractors(options, device())
        extractors = opened if embedded else opened[1:]
        if not extractors:
            raise InputError("no extractor is named; say --inception FILE, --clip DIR, --dinov2 DIR or --embedded")
        make_reference(pictures, extractors, out, features, tick, ranks)
        if ranks.is_main:
            names = ", ".join(extractor.name for extractor in extractors)
            print(f"wrote {out}: {len(pictures):,} pictures of {pictures.name} by {names}")
