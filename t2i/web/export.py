"""Writes a Hugging Face Space: a folder with one model and the page that samples it."""

import shutil
from collections.abc import Collection
from importlib import metadata
from pathlib import Path

import t2i
from t2i.errors import InputError
from t2i.families import FAMILIES
from t2i.files import new_folder
from t2i.names import counted
from t2i.pipeline import TextToImagePipeline
from t2i.text import writing

MODEL = "model"
APP = f'''"""Samples the model in this folder: a Space, and `python app.py` on any machine."""

from t2i.web.serve import serve_space

if __name__ == "__main__":
    serve_space(["{MODEL}"])
'''


def write_space(run: str, out: Path) -> None:
    """Writes app.py, requirements.txt, README.md, the saved pipeline, and the package without its models.

    The folder includes the package since no package index has it.

    Raises:
        InputError: `run` is not a model, or `out` holds files or cannot be written.
    """
    pipe = TextToImagePipeline.from_pretrained(run)
    with new_folder(out) as folder:
        pipe.save_pretrained(folder / MODEL)
        with writing(folder):
            shutil.copytree(Path(t2i.__file__).parent, folder / "t2i", ignore=_left_out)
            (folder / "app.py").write_text(APP, "utf-8")
            (folder / "requirements.txt").write_text(_requirements(), "utf-8")
            (folder / "README.md").write_text(_readme(out.resolve().name, pipe), "utf-8")


def _left_out(folder: str, names: list[str]) -> Collection[str]:
    weights = Path(folder) == Path(t2i.__file__).parent / "weights"
    return [name for name in names if name == "__pycache__" or weights and (Path(folder) / name).is_dir()]


def _requirements() -> str:
    """Returns the requirements of t2i, and Gradio for machines other than a Space, which installs it."""
    requirements = [line for line in metadata.requires("t2i") or [] if "extra ==" not in line]
    if not requirements:
        raise InputError("this t2i is not installed, so its requirements are unknown; install it: pip install .")
    return "\n".join([f"gradio=={metadata.version('gradio')}", *requirements]) + "\n"


def _readme(name: str, pipe: TextToImagePipeline) -> str:
    header = {
        "title": name,
        "sdk": "gradio",
        "sdk_version": metadata.version("gradio"),
        "python_version": '"3.12"',
        "app_file": "app.py",
        "pinned": "false",
    }
    steps = counted(pipe.manifest["step"], "step")
    lines = [f"{key}: {value}" for key, value in header.items()]
    return "\n".join(
        [
            "---", *lines, "---", "",
            f"# {name}", "",
            f"Samples images from prompts: {FAMILIES[pipe.family].words}, trained with t2i for {steps}.",
            f"[The model card]({MODEL}/README.md) has its training data and its scores.", "",
            "`pip install -r requirements.txt` and `python app.py` serve the same page on your own machine.", "",
        ]
    )  # fmt: skip
