"""Downloads pipelines from the Hugging Face hub, and uploads them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2i.errors import InputError, reason_of
from t2i.weights import INDEX

EXPECTED = "name a run directory of t2i train, or a folder that save_pretrained wrote"
# no file that would be unpickled or run
DOWNLOADED = ("*.safetensors", "*.json", "*.yaml", "*.txt")


def download(repo_id: str, subfolder: str | None, options: Mapping[str, Any]) -> Path:
    """Downloads a pipeline from the hub, unless the cache has it; returns its folder.

    Args:
        options: arguments of `huggingface_hub.snapshot_download`.

    Raises:
        InputError: there is no network, no such model, no access to it, or it is not a pipeline.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo_id, allow_patterns=list(DOWNLOADED), **options)) / (subfolder or "")
    # the client has many exceptions: no network, no such model, no access, a full disk
    except Exception as error:
        raise InputError(
            f"no folder {repo_id!r} here, and none from the hub ({reason_of(error)}); {EXPECTED}"
        ) from error
    if not (folder / INDEX).is_file():
        raise InputError(f"{repo_id!r} on the hub is not a t2i pipeline: it holds no {INDEX}; {EXPECTED}")
    return folder


def upload(folder: Path, repo_id: str, private: bool) -> str:
    """Creates the repository if it does not exist and uploads the folder in one commit; returns its URL.

    Raises:
        InputError: there is no network, no login or no write access.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        url = hub.create_repo(repo_id, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload a t2i pipeline")
    except Exception as error:  # as in `download`
        fix = "log in with `hf auth login`, check the network, or use save_pretrained and upload the folder later"
        raise InputError(f"cannot push to {repo_id!r} ({reason_of(error)}); {fix}") from error
    return str(url)
