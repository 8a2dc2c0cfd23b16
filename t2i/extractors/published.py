"""Downloads the published weights of the FID Inception into the cache directory and verifies them."""

import hashlib
import os
import urllib.request
from http.client import HTTPException
from pathlib import Path

from t2i.cache import cache_dir
from t2i.errors import InputError
from t2i.files import new_file, open_regular
from t2i.metrics.score import FID_INCEPTION_DIGEST

NAME = "weights-inception-2015-12-05-6726825d.pth"
# torch-fidelity's port of TensorFlow's inception-2015-12-05.tgz; pytorch-fid publishes the same bytes under another name
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{NAME}"
MIRROR = "T2I_INCEPTION_URL"  # environment variable with another URL, e.g. of a mirror
MOST_BYTES = 2**28
TIMEOUT_SECONDS = 30.0
_AT_ONCE = 2**20


def published_inception() -> Path:
    """Returns the path of the published file; downloads it if it is missing.

    Raises:
        InputError: the download failed, or the digest is wrong; the message says where to put the file by hand.
    """
    place = cache_dir() / "weights" / NAME
    if not place.is_file() or _digest(place) != FID_INCEPTION_DIGEST:
        _download(os.environ.get(MIRROR, URL), place)
    return place


def _download(url: str, place: Path) -> None:
    """Downloads `url` to `place` atomically and verifies the published digest."""
    by_hand = f"without a network, download {NAME} elsewhere and put it at {place}, or name it with --inception FILE"
    sha256 = hashlib.sha256()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer, new_file(place) as partial:
            with open(partial, "wb") as file:
                while chunk := answer.read(_AT_ONCE):
                    sha256.update(chunk)
                    file.write(chunk)
                    if file.tell() > MOST_BYTES:
                        raise InputError(
                            f"{url} sends over {MOST_BYTES:,} bytes, more than the published file; {by_hand}"
                        )
            if sha256.hexdigest() != FID_INCEPTION_DIGEST:
                wrong = f"sha256 {sha256.hexdigest()[:8]}..., not {FID_INCEPTION_DIGEST[:8]}..."
                raise InputError(f"{url} sends another file ({wrong}); {by_hand}")
    except InputError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        reason = str(getattr(error, "reason", None) or error).splitlines()[0][:120]
        raise InputError(f"cannot download {url} ({reason}); {by_hand}") from error


def _digest(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
