"""Serves a page that samples images in the browser. Only this machine can open it.

t2i web
t2i web runs/prior runs/gan --port 8000
t2i web runs/prior --export my-space
"""

import sys
from importlib import metadata
from pathlib import Path

from t2i.cli import run_program
from t2i.errors import InputError
from t2i.files import refuse_used
from t2i.names import installed
from t2i.web.options import WebOptions

RUNS = Path("runs")  # runs below it are offered on the page


def require_gradio() -> None:
    """Raises InputError if Gradio is missing or too old."""
    if not installed("gradio"):
        raise InputError("the page needs Gradio, which is not installed; type pip install 't2i[web]'")
    if int((version := metadata.version("gradio")).partition(".")[0]) < 6:
        raise InputError(f"the page needs Gradio 6, and {version} is installed; type pip install 't2i[web]'")


def main(options: WebOptions) -> None:
    require_gradio()

    # A folder for a Hugging Face Space instead of a page
    if options.export is not None:
        if len(options.runs) != 1:
            raise InputError(f"--export {options.export} takes one RUN, got {len(options.runs)}; name the one to show")
        refuse_used(options.export)

        from t2i.web.export import write_space

        write_space(options.runs[0], options.export)
        print(f"wrote a Space to {options.export}: app.py, requirements.txt, README.md, the model and the package")
        return

    from t2i.web.models import Models
    from t2i.web.serve import served

    # Models: the named runs are opened now, so that a mistake is reported before the page opens
    models = Models(options.runs, RUNS, options.keep_gb * 1e9)
    for run in options.runs:
        models.open(run)

    # The page, until Ctrl+C
    with served(models, options.port) as page:
        print(f"the page is at {page.local_url}; Ctrl+C ends it", file=sys.stderr, flush=True)
        page.block_thread()


if __name__ == "__main__":  # python -m t2i.sample.web
    run_program("web")
