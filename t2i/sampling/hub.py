"""Pipelines on the Hugging Face hub: downloads and uploads their folders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2i.errors import InputError
from t2i.weights import INDEX

WANTED = "name a run directory of t2i train, or a folder that save_pretrained wrote"
# nothing that is unpickled or run is ever downloaded
DOWNLOADED = ("*.safetensors", "*.json", "*.yaml", "*.txt")


def download(repo_id: str, subfolder: str | None, options: Mapping[str, Any]) -> Path:
    """The folder of a pipeline on the hub, downloaded once.

    Args:
        options: of `huggingface_hub.snapshot_download`.

    Raises:
        InputError: no network, no such model, no right to it, or no pipeline there.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo_id, allow_patterns=list(DOWNLOADED), **options)) / (subfolder or "")
    # no network, no such model, no right to it, a full disk: the client has an exception for each
    except Exception as error:
        raise InputError(f"no folder {repo_id!r} here, and none from the hub ({one_line(error)}); {WANTED}") from error
    if not (folder / INDEX).is_file():
        raise InputError(f"{repo_id!r} on the hub is no t2i pipeline: it holds no {INDEX}; {WANTED}")
    return folder


def upload(folder: Path, repo_id: str, private: bool) -> str:
    """Makes the repository where it is missing, and uploads the folder in one commit; returns its address.

    Raises:
        InputError: no network, no login, no right to write there.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        url = hub.create_repo(repo_id, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload a t2i pipeline")
    except Exception as error:  # as in `download`
        fix = "log in with `hf auth login`, look at the network, or use save_pretrained and upload the folder later"
        raise InputError(f"cannot push to {repo_id!r} ({one_line(error)}); {fix}") from error
    return str(url)


def one_line(error: Exception) -> str:
    """Type and message of an error, short enough for a line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
