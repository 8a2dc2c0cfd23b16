"""Pictures that a run draws to be scored: one for each caption, with a noise that follows from the seed and the real picture."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from t2i import seeding
from t2i.errors import InputError
from t2i.extractors import ImageTextExtractor
from t2i.images import ImageArray
from t2i.metrics.score import Protocol, library_versions
from t2i.pipeline import TextToImagePipeline
from t2i.scoring.images.collection import Pictures
from t2i.scoring.options import Options
from t2i.scoring.plan import reranking

DRAWN = 256  # prompts handed to the pipeline at once


@dataclass(frozen=True)
class Trial:
    """One way to draw pictures for the captions of `asked`."""

    run: Path | str
    pipe: TextToImagePipeline
    asked: Pictures
    options: Options
    chooser: ImageTextExtractor | None

    def marked(self, protocol: Protocol) -> Protocol:
        """With what is particular to this way."""
        pipe, options = self.pipe, self.options
        settings = pipe.sampler.tuned(options.settings).settings()
        chooser = self.chooser
        return replace(
            protocol,
            truncation=pipe.truncation if options.truncation is None else options.truncation,
            guidance=pipe.guidance_scale if options.guidance is None else options.guidance,
            temperature=settings.get("temperature"),
            sampling=json.dumps(settings) if settings else None,
            reranking=chooser and reranking(options.best_of, chooser.clip_name, chooser.digest()),
            run=pipe.manifest["config_hash"],
            checkpoint=pipe.manifest["sha256"],
            weights=pipe.chosen,
        )

    def drawn(self, rows: Sequence[int], words: Sequence[str | int] = ()) -> Iterator[list[ImageArray]]:
        """A picture for each of the captions at `rows`; other `words`, other noise."""
        options, captions = self.options, self.asked.captions or []
        for start in range(0, len(rows), DRAWN):
            part = rows[start : start + DRAWN]
            seeds = [seeding.derive(options.seed, "score", self.asked.ids[k], *words) for k in part]
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

    def pictures(self) -> Pictures:
        """As a collection.

        Raises:
            InputError: there are no captions to draw for.
        """
        if self.asked.captions is None:
            raise InputError(
                f"not all pictures in {self.asked.name} have captions, so {self.run} cannot draw for them; name captions "
                "with --prompts or --data"
            )
        side = self.pipe.manifest["config"]["data"]["resolution"]
        marks = self.marked(_UNMARKED)
        knobs = [marks.truncation, marks.guidance, marks.sampling, marks.reranking, marks.run, marks.checkpoint]
        what = [self.asked.captions, self.options.seed, knobs, library_versions()]
        digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()
        return replace(
            self.asked,
            name=str(self.run),
            split=None,
            digest=digest,
            resolution=side,
            chunks=self.drawn,
            chosen=None,
            sizes=None,
            skipped=0,
        )


_UNMARKED = Protocol("", 0, None, None, None, 0, "", "", None, None, None, None, None)
