"""Bad images, captions, tars and folders that change; benchmarks/data_fuzz.py makes many of them."""

import io
import json
import os
import random
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(rng: random.Random, height: int = 48, width: int = 40, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def sound(rng: random.Random) -> tuple[bytes, str]:
    kind, suffix = rng.choice([("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp")])
    return encoded(Image.fromarray(pixels(rng)), kind), suffix


def truncated(rng: random.Random) -> tuple[bytes, str]:
    data, suffix = sound(rng)
    return data[: rng.randrange(1, len(data))], suffix


def flipped(rng: random.Random) -> tuple[bytes, str]:
    data, suffix = sound(rng)
    content = bytearray(data)
    for _ in range(rng.choice([1, 3, 20])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content), suffix


def header(rng: random.Random) -> tuple[bytes, str]:
    data, suffix = sound(rng)
    return data[: rng.randrange(4, 32)] + rng.randbytes(rng.randrange(400)), suffix


def png_of(width: int, height: int, rows: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    start = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def bomb(rng: random.Random) -> tuple[bytes, str]:
    width, height = rng.choice([(60_000, 60_000), (2**31 - 1, 2**31 - 1), (16_385, 2), (8000, 8000), (5000, 4000)])
    return png_of(width, height, zlib.compress(b"\0" * 2_000_000)), "png"


def cmyk(rng: random.Random) -> tuple[bytes, str]:
    return encoded(Image.fromarray(pixels(rng, channels=4), "CMYK"), "JPEG"), "jpg"


def palette(rng: random.Random) -> tuple[bytes, str]:
    picture = Image.fromarray(pixels(rng)).quantize(rng.choice([2, 16, 256]))
    options = {"transparency": 0} if rng.random() < 0.5 else {}
    return encoded(picture, rng.choice(["PNG", "GIF"]), **options), "png"


def deep(rng: random.Random) -> tuple[bytes, str]:
    levels = np.random.default_rng(rng.getrandbits(32)).integers(0, 65536, (30, 30)).astype(np.uint16)
    return encoded(Image.fromarray(levels), "PNG"), "png"


def animated(rng: random.Random) -> tuple[bytes, str]:
    frames = [Image.fromarray(pixels(rng, 20, 20)) for _ in range(4)]
    kind = rng.choice(["GIF", "WEBP", "PNG"])
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:]), kind.lower()


def empty(rng: random.Random) -> tuple[bytes, str]:
    return rng.choice([b"", b"\0" * rng.randrange(1, 200), b"<html><body>404</body></html>"]), rng.choice(
        ["png", "jpg"]
    )


def misnamed(rng: random.Random) -> tuple[bytes, str]:
    return sound(rng)[0], rng.choice(["png", "jpg", "webp", "gif", "bmp", "jpeg"])


def tiny(rng: random.Random) -> tuple[bytes, str]:
    width, height = rng.choice([(1, 1), (1, 300), (3000, 2), (2, 2)])
    return encoded(Image.fromarray(pixels(rng, height, width)), "PNG"), "png"


PICTURES: tuple[Callable[[random.Random], tuple[bytes, str]], ...] = (
    sound,
    truncated,
    flipped,
    header,
    bomb,
    cmyk,
    palette,
    deep,
    animated,
    empty,
    misnamed,
    tiny,
    sound,
    cmyk,
    palette,
    deep,
)


def put_pictures(folder: Path, count: int, seed: int = 0) -> list[str]:
    """Writes fuzzed images with a caption each; returns their names."""
    rng = random.Random(seed)
    names = []
    with open(folder / "metadata.jsonl", "w") as file:
        for number in range(count):
            content, suffix = PICTURES[number % len(PICTURES)](rng)
            names.append(f"{number:05d}.{suffix}")
            (folder / names[-1]).write_bytes(content)
            file.write(json.dumps({"file_name": names[-1], "text": f"picture {number}"}) + "\n")
    return names


# ---- captions, as bytes of a .txt file ---------------------------------------------------------------------------------

CAPTIONS: tuple[Callable[[random.Random], bytes], ...] = (
    lambda rng: b"a dog " + rng.randbytes(rng.randrange(1, 30)),
    lambda rng: "ein Hund auf der Straße".encode("latin-1"),
    lambda rng: b"\xff\xfe" + "a dog".encode("utf-16-le"),
    lambda rng: b"a\0dog\0" * rng.randrange(1, 50),
    lambda rng: b"a dog \xed\xa0\x80 runs",  # a lone surrogate in UTF-8
    lambda rng: "\u202eسگ می\u200cدود\u202c \u2066x".encode(),
    lambda rng: (rng.choice(["word ", "\u05d0\u05d1 ", "x"]) * 1_000_000)[:1_000_000].encode(),
    lambda rng: rng.choice([b"", b"\n\n", b" \t\r\n", "\u200b\ufeff".encode()]),
    lambda rng: "👩\u200d🚀 🏳️\u200d🌈 👨\u200d👩\u200d👧\u200d👦".encode() * rng.randrange(1, 40),
    lambda rng: ("e" + "\u0301" * rng.randrange(1, 3000)).encode(),
    lambda rng: b"\xef\xbb\xbfa dog with a mark in front",
    lambda rng: b"\x1b[31mred\x1b[0m \x07 <script>alert(1)</script> ${jndi:x} %s %n",
    lambda rng: "".join(chr(rng.randrange(32, 0xD7FF)) for _ in range(200)).encode(),
)


# ---- tars --------------------------------------------------------------------------------------------------------------


def _good(tar: tarfile.TarFile, key: str) -> None:
    picture = encoded(Image.new("RGB", (8, 8), "red"), "PNG")
    for suffix, content in (("png", picture), ("txt", b"a red square")):
        _add(tar, f"{key}.{suffix}", content)


def _add(tar: tarfile.TarFile, name: str, content: bytes = b"", **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(content) if content else None)


def hostile_tars(folder: Path, canary: Path, seed: int = 0) -> dict[Path, str]:
    """Writes 60 tars; returns the fault of each. A reader that creates or changes `canary` has been caught."""
    rng = random.Random(seed)
    picture = encoded(Image.new("RGB", (8, 8), "blue"), "PNG")
    pickled = f"cbuiltins\nexec\n(S'open({str(canary)!r}, \"w\")'\ntR.".encode()
    made: dict[Path, str] = {}

    def write(what: str, fill: Callable[[tarfile.TarFile], None], good: bool = True, **options: object) -> Path:
        path = folder / f"{len(made):03d}.tar"
        with tarfile.open(path, "w", **options) as tar:
            if good:
                _good(tar, "good")
            fill(tar)
        made[path] = what
        return path

    up = "../" * 30 + str(canary).lstrip("/")
    for name in (up, str(canary), f"a/{up}", f"./{up}", "..\\..\\evil", "a/../../evil", "/etc/passwd", "\\\\host\\x"):
        write(
            f"a name that leaves: {name}",
            lambda tar, n=name: (_add(tar, f"{n}.png", picture), _add(tar, f"{n}.txt", b"x")),
        )
        write(f"nothing but a name that leaves: {name}", lambda tar, n=name: _add(tar, f"{n}.png", picture), good=False)
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        for target in ("/etc/passwd", str(canary), "../../secret", "good.png", "link.png"):
            write(
                f"a link to {target}",
                lambda tar, k=kind, t=target: (_add(tar, "link.png", type=k, linkname=t), _add(tar, "link.txt", b"x")),
            )
    for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, b"Z", b"V", b"M"):
        write(f"a member of type {kind!r}", lambda tar, k=kind: _add(tar, "dev.png", type=k, devmajor=1, devminor=3))
    for size in (2**40, 2**62):
        sparse = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.realsize": str(size),
            "GNU.sparse.name": "s.png",
        }
        write("a sparse bomb", lambda tar, s=sparse: _add(tar, "s.png", b"1\n0\n0\n" + b"\0" * 506, pax_headers=s))
        write(
            "a sparse map",
            lambda tar, s=size: _add(
                tar, "s.png", b"0" * 512, pax_headers={"GNU.sparse.map": f"0,{s}", "GNU.sparse.size": str(s)}
            ),
        )
    for name in ("x.pkl", "x.pth", "x.pickle", "x.pyd", "x.npy", "good.pyd", "good.cls.pkl"):
        write(f"a pickle: {name}", lambda tar, n=name: _add(tar, n, pickled))
    write("a pickle as picture", lambda tar: (_add(tar, "p.png", pickled), _add(tar, "p.txt", b"x")))
    write("a pickle as captions", lambda tar: (_add(tar, "p.png", picture), _add(tar, "p.txt", pickled)))
    write("deep JSON", lambda tar: (_add(tar, "p.png", picture), _add(tar, "p.json", b"[" * 200_000)))
    write(
        "JSON of another kind", lambda tar: (_add(tar, "p.png", picture), _add(tar, "p.json", b'{"caption": {"a": 1}}'))
    )
    write("a huge caption", lambda tar: (_add(tar, "p.png", picture), _add(tar, "p.txt", b"word " * 800_000)))
    write("captions that are no text", lambda tar: (_add(tar, "p.png", picture), _add(tar, "p.txt", b"\xff\xfe\xfa")))
    write("a name of 100,000 letters", lambda tar: _add(tar, f"{'x' * 100_000}.png", picture))
    write("two pictures with one key", lambda tar: (_add(tar, "good.jpg", picture), _add(tar, "good.txt", b"x")))
    write("a huge extended header", lambda tar: _add(tar, "p.png", picture, pax_headers={"comment": "x" * 3_000_000}))
    while len(made) < 60:
        path = write("damage", lambda tar: [_good(tar, f"more{k}") for k in range(5)])
        content = bytearray(path.read_bytes())
        if len(made) % 3:
            for _ in range(5):
                content[rng.randrange(len(content))] = rng.randrange(256)
        else:
            del content[rng.randrange(600, len(content)) :]
        path.write_bytes(content)
    return made


# ---- folders that change -----------------------------------------------------------------------------------------------


def remove(path: Path) -> None:
    path.unlink()


def damage(path: Path) -> None:
    path.write_bytes(b"replaced by text, longer or shorter")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:30])


def replace(path: Path) -> None:
    path.write_bytes(encoded(Image.new("RGB", (30, 30), "green"), "PNG"))


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe_instead(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere.png"))


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def lock(path: Path) -> None:
    """Makes a file unreadable, or removes it for the superuser, who can read everything."""
    path.chmod(0)
    if os.access(path, os.R_OK):
        path.unlink()


def grow(path: Path) -> None:
    with open(path, "ab") as file:
        file.truncate(70 * 1024 * 1024)


CHANGES = (remove, damage, cut, replace, folder_instead, pipe_instead, dangle, loop, lock, grow)


def in_the_past(folder: Path) -> None:
    """Makes files look old enough for a cache to trust their time stamps."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, ns=(10**18, 10**18))
