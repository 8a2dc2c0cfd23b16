"""Files in object storage or on a web server, read by ranges through fsspec: `s3://bucket/key`, `gs://`, `https://`, ...

Dropped connections are retried. `LostConnection` is raised if that fails; it ends a run after saving a checkpoint, so
that no image is ever replaced by another because the network was down.
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

# protocol -> the package that reads it; other protocols of fsspec, such as chains and references, are refused
PROTOCOLS = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "http": "aiohttp", "https": "aiohttp", "memory": "fsspec"}
WAITS = (0.5, 1.0, 2.0, 4.0)  # seconds before each retry
BLOCK = 1 << 23  # bytes per request when a file is copied
TIMEOUT = 60.0  # seconds without data, after which a connection counts as lost
AT_ONCE = 16  # concurrent requests for file sizes
_TAGS = ("ETag", "etag", "md5Hash", "generation", "Last-Modified", "LastModified", "mtime", "created")
_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, ImportError, NotImplementedError, ValueError)

T = TypeVar("T")


class RemoteFile(NamedTuple):
    """A file at a URL, with the size and the tag that it had when the data was opened, which identify the contents."""

    url: str
    size: int
    tag: str  # changes with the contents: an ETag, otherwise a time

    def __str__(self) -> str:
        return self.url

    def read(self, start: int, size: int) -> bytes:
        """Reads `size` bytes from `start`.

        Raises:
            LostConnection: all retries failed.
        """

        def fetch() -> bytes:
            data = _system(self.url).cat_file(self.url, start=start, end=start + size)
            if len(data) > size:
                raise NotImplementedError("the server ignores range requests")
            if len(data) < size:
                raise OSError(f"got {len(data):,} of {size:,} bytes")
            return data

        try:
            return _retried(fetch)
        except Exception as error:
            raise LostConnection(f"{shown(self.url)} cannot be read: {_reason(error)}") from error


Place = Path | RemoteFile


def is_remote(place: str) -> bool:
    """Returns True for a URL."""
    return re.match(r"[a-z0-9]+://", place) is not None


@contextmanager
def opened(place: Place) -> Iterator[BinaryIO]:
    """Opens a local or remote file for reading; a remote one is first copied to a temporary file, in blocks.

    Raises:
        OSError: the file cannot be opened.
        LostConnection: the connection was lost and all retries failed.
    """
    if isinstance(place, Path):
        with open_regular(place) as file:
            yield file
        return
    with tempfile.TemporaryFile() as copy:
        for start in range(0, place.size, BLOCK):
            copy.write(place.read(start, min(BLOCK, place.size - start)))
        copy.seek(0)
        yield copy  # pyright: ignore[reportReturnType]  # tempfile returns a wrapper of a binary file


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Locks `path`, so that only one process of a machine writes it at a time."""
    from filelock import FileLock

    with suppress(OSError):  # writing the file reports the error
        path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock.tmp")):
        yield


def find(urls: Sequence[str]) -> list[RemoteFile]:
    """Returns the files at these URLs.

    Raises:
        InputError: a file does not exist or cannot be reached.
    """
    with ThreadPoolExecutor(min(AT_ONCE, len(urls))) as pool:
        return list(pool.map(_find, urls))


def beside(place: Place, suffix: str) -> Place | None:
    """Returns the file with the same stem and another suffix, or None if it does not exist."""
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
    """Returns the files that match any of these patterns with `*`, sorted.

    Raises:
        InputError: no file matches, or the storage cannot list files.
    """
    first = patterns[0]
    protocol = first.partition("://")[0]
    if protocol in ("http", "https"):
        raise InputError(f"{shown(first)}: a web server cannot list files; name them, as in .../train-{{000..063}}.tar")
    try:
        names = _retried(lambda: sorted(name for one in patterns for name in _system(one).glob(one)))
    except Exception as error:
        raise _refusal(first, error) from error
    if not names:
        raise InputError(f"no file matches {' or '.join(map(shown, patterns))}; check the bucket and the name")
    return find([f"{protocol}://{str(name).lstrip('/')}" for name in names])


def _find(url: str) -> RemoteFile:
    try:
        return _info(url)
    except Exception as error:
        raise _refusal(url, error) from error


def _info(url: str) -> RemoteFile:
    info: dict[str, Any] = _retried(lambda: _system(url).info(url))
    if info.get("type") == "directory" or info.get("size") is None:
        raise IsADirectoryError("it has no size")
    return RemoteFile(url, int(info["size"]), str(next((info[tag] for tag in _TAGS if info.get(tag)), "")))


def _system(url: str) -> Any:
    """Returns the file system of a URL, which fsspec caches in each process."""
    protocol = url.partition(":")[0]
    if protocol not in PROTOCOLS:
        raise ImportError
    import fsspec

    options: dict[str, Any] = {}
    if protocol in ("http", "https"):  # no limit of the total time, only of the time without data
        import aiohttp

        options = {
            "client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=TIMEOUT)}
        }
    return fsspec.filesystem(protocol, **options)


def _retried(action: Callable[[], T]) -> T:
    """Calls `action`, and retries it after errors that may be temporary."""
    for seconds in WAITS:
        try:
            return action()
        except _PERMANENT:
            raise
        except Exception as error:
            if "Credentials" in type(error).__name__:
                raise
            time.sleep(seconds)
    return action()


def _refusal(url: str, error: Exception) -> InputError:
    """Returns the error for a file that cannot be opened, with what the user can do."""
    name, protocol = shown(url), url.partition(":")[0]
    if protocol not in PROTOCOLS:
        return InputError(
            f"{name}: protocol {protocol}:// is not supported; use one of {', '.join(PROTOCOLS)}, or copy the files here"
        )
    if isinstance(error, ImportError):
        package = PROTOCOLS[protocol]
        how = "'t2i[remote]'" if package in ("s3fs", "aiohttp", "fsspec") else package
        return InputError(f"{name} needs the package {package}, which is not installed: pip install {how}")
    if "Credentials" in type(error).__name__:
        return InputError(
            f"no credentials for {name}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE ({_reason(error)})"
        )
    if isinstance(error, PermissionError):
        return InputError(
            f"no permission to read {name} ({_reason(error)}); check the credentials and the permissions of the bucket"
        )
    if isinstance(error, FileNotFoundError | IsADirectoryError):
        return InputError(f"{name} does not exist ({_reason(error)}); check the bucket and the name")
    return InputError(f"{name} cannot be reached ({_reason(error)}); check the network and the address")


def _reason(error: Exception) -> str:
    message = " ".join(str(error).split())
    return (message if message and not message.startswith(("s3:", "http")) else type(error).__name__)[:160]
