"""Writes the page that samples in a browser: HTML, a script, and the versions of the two packages that it needs."""

import json
import shutil
from pathlib import Path

from t2i.families import FAMILIES
from t2i.pipeline import TextToImagePipeline
from t2i.report.template import render, style

FOLDER = Path(__file__).parent
# the script loads them from node_modules beside it, or else from a CDN
PACKAGES = {"onnxruntime-web": "1.30.0", "@huggingface/tokenizers": "0.2.0"}


def write_page(folder: Path, pipe: TextToImagePipeline, prompt: str) -> None:
    """Writes index.html, page.js and package.json beside the exported graphs.

    Args:
        prompt: initial value of the prompt field.
    """
    facts = {"words": FAMILIES[pipe.family].words, "resolution": pipe.manifest["config"]["data"]["resolution"]}
    page = render(
        "page.html",
        FOLDER,
        title=f"t2i: {pipe.home.name}",
        style=style("chart.css", "style.css"),
        prompt=prompt,
        step=pipe.manifest["step"],
        **facts,
    )
    (folder / "index.html").write_text(page, "utf-8")
    shutil.copyfile(FOLDER / "page.js", folder / "page.js")
    (folder / "package.json").write_text(
        json.dumps({"private": True, "dependencies": PACKAGES}, indent=1) + "\n", "utf-8"
    )
