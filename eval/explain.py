"""Explains an image on an HTML page: maps of the part that each word affects, and the word's share of the score.

    t2i explain prior "a small red star left of a large green ring"
    t2i explain runs/cgan "a red circle above a blue square" --seed 3 --out page.html

The image is the one that `t2i sample` makes for the same prompt and seed. docs/explain.md describes the maps.
"""

from pathlib import Path

from t2i.cli import run_program
from t2i.console import shown_progress
from t2i.errors import InputError
from t2i.explain.options import ExplainOptions
from t2i.explain.words import words_of
from t2i.files import refuse_unwritable
from t2i.hardware import prepare_cpu
from t2i.sampling.output import slug
from t2i.sampling.prompts import clean_prompt


def main(options: ExplainOptions) -> None:
    # The prompt, its words, and a place for the page
    prompt = clean_prompt(options.prompt)
    words = words_of(prompt, options.replacements)
    place = options.out or Path(f"explain-{slug(prompt)}-seed{options.seed}.html")
    if place.exists():
        raise InputError(f"{place} exists; delete it, or name another file with --out")
    refuse_unwritable(place, "an HTML file", "--out" if options.out else "")
    prepare_cpu()
    # slow to import, so only after the checks
    from t2i.explain.maps import maps_of
    from t2i.explain.page import shares_of, write_page
    from t2i.extractors import open_image_text
    from t2i.pipeline import TextToImagePipeline

    # Maps of the words, and their shares of the score
    with shown_progress():
        scorer = open_image_text(options.scorer)
        pipe = TextToImagePipeline.from_pretrained(options.run)
        pipe.warn_of_unknown_words([prompt])
        maps = maps_of(pipe, prompt, words, options.seed)
        shares = shares_of(scorer, maps.image_HWC, prompt, words)

    # The page, and a line for each word
    facts = {
        "model": f"{options.run}, step {pipe.manifest['step']:,}",
        "seed": str(options.seed),
        "score": f"cosine by {options.scorer or 'the embedded scorer'}",
    }
    write_page(place, facts, prompt, words, maps, shares)
    for word, word_map, value in zip(words, maps.words, shares.values, strict=True):
        print(f"{word.text:<16} peak {word_map.max():8.3g} {maps.unit}, {value:+.3f} of the score {shares.whole:.3f}")
    print(f"wrote {place}")


if __name__ == "__main__":  # python -m t2i.eval.explain
    run_program("explain")
