"""Opens the two sides of a scoring: the captions to sample or the generated images, and the real images."""

from dataclasses import replace
from typing import Any

from t2i.data import View
from t2i.data.published.question_files import read_questions
from t2i.errors import InputError
from t2i.files import at_home
from t2i.hardware import device
from t2i.pipeline import TextToImagePipeline
from t2i.sampling.prompts import read_prompts
from t2i.scoring.images.collection import ALL, Images, dataset_images, dataset_partners, prompt_images
from t2i.scoring.images.reference import Reference, open_reference
from t2i.scoring.images.sources import open_images
from t2i.scoring.options import ScoreOptions
from t2i.scoring.plan import Real
from t2i.scoring.trial import Trial
from t2i.weights import INDEX, shipped


def sides_of_run(options: ScoreOptions, own: dict[str, Any]) -> tuple[Images, Real]:
    """Returns the images whose captions a run samples, and the images or statistics to compare with.

    Args:
        own: the section `data` of the run's config.

    Raises:
        InputError: there is no such data, image folder, file of statistics or run.
    """
    against, view = options.against, view_of(options, own)
    address, split, n = options.data or own["address"], options.split or "val", options.n
    prompts = options.prompts or (None if options.data else options.questions)
    if prompts is not None:
        every = read_prompts(prompts) if options.prompts else list(read_questions(prompts))
        captioned = prompt_images(prompts, n, every)
        if against is None:
            return captioned, None
        return captioned, sampled_by(against, captioned, options) if is_run(against) else open_real(against, options)
    if against is None or is_run(against):
        captioned = dataset_images(address, split, n, view)
        return captioned, captioned if against is None else sampled_by(against, captioned, options)
    real = open_real(against, options, n)
    if isinstance(real, Images) and real.captions is not None:
        return real, real
    if isinstance(real, Reference) and real.split is not None:
        return _images_of(real, n, view), real
    return dataset_images(address, split, n, view), real


def sides_of_images(options: ScoreOptions) -> tuple[Images, Real]:
    """Returns the generated images of a folder or file, and the images or statistics to compare with.

    Raises:
        InputError: there are no such images, or they have no captions to find their partners in a data set.
    """
    fake = open_images(options.target, options.n, options.skip_broken)
    if options.data is not None:
        return fake, _same_captions(fake, options.data, options)
    if options.against is None:
        return fake, None
    if is_run(options.against):
        return fake, sampled_by(options.against, fake, options)
    return fake, open_real(options.against, options)


def view_of(options: ScoreOptions, own: dict[str, Any]) -> View:
    """Returns the view of the real images: resolution, fit and split."""
    return View(options.resolution or own["resolution"], own["fit"], None, own["split_seed"])


def training_view(own: dict[str, Any]) -> View:
    """Returns the view under which the run's record of training images was made."""
    return View(own["resolution"], "center" if own["fit"] == "random" else own["fit"], None, own["split_seed"])


def training_images(own: dict[str, Any]) -> Images:
    """Returns all training images of a run with this data config."""
    view = View(own["resolution"], own["fit"], own["limit"], own["split_seed"])
    return dataset_images(own["address"], "train", None, view, at_most=ALL)


def is_run(place: str) -> bool:
    """Returns True if a model is at that place, False for images."""
    path = at_home(place)
    return (
        place in shipped()
        or path.is_dir()
        and any((path / name).exists() for name in ("checkpoints", "config.yaml", INDEX))
    )


def open_real(against: str, options: ScoreOptions, n: int | None = None) -> Images | Reference:
    """Opens statistics, or images in a folder or file; raises InputError if there are neither."""
    path = at_home(against)
    if path.suffix.lower() in (".safetensors", ".npz"):
        if (reference := open_reference(path)) is not None:
            return reference
    return open_images(against, n, options.skip_broken)


def sampled_by(run: str, captioned: Images, options: ScoreOptions) -> Images:
    """Returns the images of another run for the same captions, sampled with its default settings."""
    plain = ScoreOptions(target=run, seed=options.seed)
    return Trial(run, TextToImagePipeline.from_pretrained(run, device()), captioned, plain, None).images()


def _images_of(reference: Reference, n: int | None, view: View) -> Images:
    """Returns the images of a data set from which a file of statistics was made, for their captions."""
    assert reference.split is not None and reference.n is not None
    view = replace(view, resolution=reference.resolution or view.resolution)
    captioned = dataset_images(reference.name, reference.split, n or reference.n, view)
    if len(captioned) == reference.n and captioned.digest != reference.digest:
        raise InputError(
            f"{reference.path} was made from other images than split {reference.split} of {reference.name} holds now; make "
            "it again with t2i eval reference"
        )
    return captioned


def _same_captions(fake: Images, data: str, options: ScoreOptions) -> Images:
    if fake.captions is None:
        raise InputError(
            f"not all images in {fake.name} have captions, which are needed to find their partners in {data}; compare with "
            "a folder of images by --against"
        )
    resolution = options.resolution or fake.resolution
    if resolution is None:
        raise InputError(
            f"images in {fake.name} are not squares of one size; set the size of the real ones with --resolution"
        )
    return dataset_partners(data, options.split or "val", fake.captions, View(resolution))
