"""Files in object storage or on a web server, read by ranges through fsspec: `s3://bucket/key`, `gs://`, `https://`, ...

A dropped connection is tried again; one that does not come back raises `LostConnection`, which ends a run with all that is done
saved, as an image must never be replaced because a network was down.
"""

import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from t2i.errors import InputError
from t2i.files import open_regular
from t2i.images import LostConnection
from t2i.names import shown

# protocol -> the package that reads it; others of fsspec, as its chains and references, are not opened
PROTOCOLS = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "http": "aiohttp", "https": "aiohttp", "memory": "fsspec"}
WAITS = (0.5, 1.0, 2.0, 4.0)  # seconds before another try
BLOCK = 1 << 23  # bytes of one request while a file is copied
SILENT = 60.0  # seconds without an answer, after which a connection is lost
AT_ONCE = 16  # requests for sizes
_TAGS = ("ETag", "etag", "md5Hash", "generation", "Last-Modified", "LastModified", "mtime", "created")
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, ImportError, NotImplementedError, ValueError)

T = TypeVar("T")


class RemoteFile(NamedTuple):
    """One file at a URL, as it was when it was found."""

    url: str
    size: int
    tag: str  # changes with the contents: an ETag, else a time

    def __str__(self) -> str:
        return self.url

    @property
    def stamp(self) -> tuple[str, int, str]:
        """What an index of the file is valid for."""
        return self.url, self.size, self.tag

    def read(self, start: int, size: int) -> bytes:
        """Returns bytes of the file.

        Raises:
            LostConnection: they do not come, however often they are asked for.
        """

        def fetch() -> bytes:
            data = _system(self.url).cat_file(self.url, start=start, end=start + size)
            if len(data) > size:
                raise NotImplementedError("the server sends whole files where a range is asked for")
            if len(data) < size:
                raise OSError(f"{len(data):,} of {size:,} bytes came")
            return data

        try:
            return _patiently(fetch)
        except Exception as error:
            raise LostConnection(f"{shown(self.url)} cannot be read: {_reason(error)}") from error


Place = Path | RemoteFile


def is_remote(place: str) -> bool:
    """Returns True for a URL."""
    return re.match(r"[a-z0-9]+://", place) is not None


@contextmanager
def opened(place: Place) -> Iterator[BinaryIO]:
    """Opens a file for reading at any place; a remote one is copied to a temporary file first, in blocks.

    Raises:
        OSError: it cannot be opened.
        LostConnection: as `RemoteFile.read`.
    """
    if isinstance(place, Path):
        with open_regular(place) as file:
            yield file
        return
    with tempfile.TemporaryFile() as copy:
        for start in range(0, place.size, BLOCK):
            copy.write(place.read(start, min(BLOCK, place.size - start)))
        copy.seek(0)
        yield copy  # pyright: ignore[reportReturnType]  # a file, however tempfile wraps it


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Lets one process of a machine at a time make the file `path`."""
    from filelock import FileLock

    with suppress(OSError):  # writing the file will tell
        path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock.tmp")):
        yield


def find(urls: Sequence[str]) -> list[RemoteFile]:
    """Returns the files at these URLs.

    Raises:
        InputError: one is not there, or cannot be reached; the message names it.
    """
    with ThreadPoolExecutor(min(AT_ONCE, len(urls))) as pool:
        return list(pool.map(_find, urls))


def beside(place: Place, suffix: str) -> Place | None:
    """Returns the file of that name with another suffix, if there is one."""
    if isinstance(place, Path):
        path = place.with_suffix(suffix)
        return path if path.is_file() else None
    stem, _, _ = place.url.rpartition(".")
    try:
        return _info(f"{stem}{suffix}")
    except FileNotFoundError:
        return None
    except Exception as error:
        raise _refusal(f"{stem}{suffix}", error) from error


def matching(*patterns: str) -> list[RemoteFile]:
    """Returns the files that fit any of some patterns with `*`, in order.

    Raises:
        InputError: none does, or the storage cannot list.
    """
    first = patterns[0]
    protocol = first.partition("://")[0]
    if protocol in ("http", "https"):
        raise InputError(f"{shown(first)}: a web server lists no files; name them, as in .../train-{{000..063}}.tar")
    try:
        names = _patiently(lambda: sorted(name for one in patterns for name in _system(one).glob(one)))
    except Exception as error:
        raise _refusal(first, error) from error
    if not names:
        raise InputError(f"nothing fits {' or '.join(map(shown, patterns))}; check the bucket and the name")
    return find([f"{protocol}://{str(name).lstrip('/')}" for name in names])


def _find(url: str) -> RemoteFile:
    try:
        return _info(url)
    except Exception as error:
        raise _refusal(url, error) from error


def _info(url: str) -> RemoteFile:
    found: dict[str, Any] = _patiently(lambda: _system(url).info(url))
    if found.get("type") == "directory" or found.get("size") is None:
        raise IsADirectoryError("no file of a known size")
    return RemoteFile(url, int(found["size"]), str(next((found[tag] for tag in _TAGS if found.get(tag)), "")))


def _system(url: str) -> Any:
    """The file system of a URL; fsspec keeps one for each process."""
    protocol = url.partition(":")[0]
    if protocol not in PROTOCOLS:
        raise ImportError
    import fsspec

    words: dict[str, Any] = {}
    if protocol in ("http", "https"):  # as long as it likes, but not without a byte
        import aiohttp

        words = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=SILENT, sock_read=SILENT)}}
    return fsspec.filesystem(protocol, **words)


def _patiently(action: Callable[[], T]) -> T:
    """Tries again what fails as a network does, a few times."""
    for seconds in WAITS:
        try:
            return action()
        except _LASTING:
            raise
        except Exception as error:
            if "Credentials" in type(error).__name__:
                raise
            time.sleep(seconds)
    return action()


def _refusal(url: str, error: Exception) -> InputError:
    """What the user can do about a file that cannot be opened."""
    name, protocol = shown(url), url.partition(":")[0]
    if protocol not in PROTOCOLS:
        return InputError(
            f"{name}: {protocol}:// is not read; there are: {', '.join(PROTOCOLS)}, or copy the files here"
        )
    if isinstance(error, ImportError):
        package = PROTOCOLS[protocol]
        how = "'t2i[remote]'" if package in ("s3fs", "aiohttp", "fsspec") else package
        return InputError(f"{name} is read with {package}, which is not installed; pip install {how}")
    if "Credentials" in type(error).__name__:
        return InputError(
            f"no credentials to read {name}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE ({_reason(error)})"
        )
    if isinstance(error, PermissionError):
        return InputError(
            f"not allowed to read {name} ({_reason(error)}); check the credentials and the rights of the bucket"
        )
    if isinstance(error, FileNotFoundError | IsADirectoryError):
        return InputError(f"{name} is not there ({_reason(error)}); check the bucket and the name")
    return InputError(f"{name} cannot be reached ({_reason(error)}); check the network and the address")


def _reason(error: Exception) -> str:
    words = " ".join(str(error).split())
    return (words if words and not words.startswith(("s3:", "http")) else type(error).__name__)[:160]
