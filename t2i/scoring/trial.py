"""Samples the images to score: one for each caption, with noise that depends on the seed and the id of the real image."""

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from t2i import seeding
from t2i.errors import InputError
from t2i.images import ImageArray
from t2i.metrics import NO_PROTOCOL
from t2i.metrics.score import ScoreProtocol, library_versions
from t2i.pipeline import TextToImagePipeline
from t2i.sampling.reranking import Chooser, name_of
from t2i.scoring.images.collection import Images
from t2i.scoring.options import ScoreOptions
from t2i.scoring.plan import reranking

AT_ONCE = 256  # prompts in one call of the pipeline


@dataclass(frozen=True)
class Trial:
    """A pipeline with settings, and the images whose captions are its prompts."""

    run: Path | str
    pipe: TextToImagePipeline
    captioned: Images
    options: ScoreOptions
    chooser: Chooser | None

    def marked(self, protocol: ScoreProtocol) -> ScoreProtocol:
        """Returns the protocol with the run and the settings filled in."""
        pipe, options = self.pipe, self.options
        settings = pipe.sampler.tuned(options.settings).settings()
        chooser = self.chooser
        return replace(
            protocol,
            truncation=pipe.truncation if options.truncation is None else options.truncation,
            guidance=pipe.guidance_scale if options.guidance is None else options.guidance,
            temperature=settings.get("temperature"),
            sampling=json.dumps(settings) if settings else None,
            reranking=chooser and reranking(options.best_of, name_of(chooser), chooser.digest()),
            run=pipe.manifest["config_hash"],
            checkpoint=pipe.manifest["sha256"],
            weights=pipe.chosen,
        )

    def sample(self, rows: Sequence[int], words: Sequence[str | int] = ()) -> Iterator[list[ImageArray]]:
        """Yields an image for each caption at `rows`, in chunks; other `words` give other noise."""
        options, captions = self.options, self.captioned.captions or []
        for start in range(0, len(rows), AT_ONCE):
            part = rows[start : start + AT_ONCE]
            seeds = [seeding.derive(options.seed, "score", self.captioned.ids[k], *words) for k in part]
            with warnings.catch_warnings():  # captions of a data set may have unknown words
                warnings.filterwarnings("ignore", ".* among its words")
                output = self.pipe(
                    [captions[k] for k in part],
                    1,
                    options.guidance,
                    options.truncation,
                    seeds,
                    output_type="uint8",
                    best_of=options.best_of,
                    scorer=self.chooser,
                    **options.settings,
                )
            yield list(cast(ImageArray, output.images))

    def images_at(self, rows: Sequence[int]) -> list[ImageArray]:
        """Returns the images for the captions at `rows`."""
        return [image for chunk in self.sample(rows) for image in chunk]

    def images(self) -> Images:
        """Returns the images for all captions, as a collection.

        Raises:
            InputError: an image has no caption.
        """
        if self.captioned.captions is None:
            raise InputError(
                f"not all images in {self.captioned.name} have captions, which {self.run} needs as prompts; name captions with "
                "--prompts or --data"
            )
        side = self.pipe.manifest["config"]["data"]["resolution"]
        marks = self.marked(NO_PROTOCOL)
        knobs = [marks.truncation, marks.guidance, marks.sampling, marks.reranking, marks.run, marks.checkpoint]
        what = [self.captioned.captions, self.options.seed, knobs, library_versions()]
        digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()
        return replace(
            self.captioned,
            name=str(self.run),
            split=None,
            digest=digest,
            resolution=side,
            chunks=self.sample,
            chosen=None,
            sizes=None,
            formats=None,
            skipped=0,
        )
