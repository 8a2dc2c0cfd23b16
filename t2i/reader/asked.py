"""Questions about captions: of a file, or made from what a caption of drawn shapes says."""

from collections.abc import Sequence
from pathlib import Path

from t2i.data.captions import clean_caption
from t2i.data.published.question_files import read_questions
from t2i.data.questions import Question
from t2i.data.shapes.captions import parse
from t2i.data.shapes.questions import questions_about
from t2i.errors import InputError
from t2i.seeding import key_of


def questions_about_captions(captions: Sequence[str], file: Path | None) -> list[list[Question]]:
    """The questions about each caption, the same for the same caption.

    Args:
        file: TIFA or DSG; None: they are made from what captions of drawn shapes say.

    Raises:
        InputError: there are none about a caption.
    """
    if file is not None:
        known = read_questions(file)
        if missing := [caption for caption in captions if clean_caption(caption) not in known]:
            raise InputError(
                f"{file} has no questions about {len(missing):,} of {len(captions):,} captions, as {missing[0][:60]!r}; leave "
                "--data and --prompts out to sample the captions that it has"
            )
        return [list(known[clean_caption(caption)]) for caption in captions]
    specs = [parse(caption) for caption in captions]
    if None in specs:
        odd = captions[specs.index(None)]
        raise InputError(
            f"questions are made from captions of drawn shapes, and {odd[:60]!r} is none; name a TIFA or DSG file with "
            "--questions"
        )
    return [
        questions_about(spec, key_of(caption))
        for spec, caption in zip(specs, captions, strict=True)
        if spec is not None
    ]
