"""Protocols by name, as "COCO 30k" in papers. `t2i eval score RUN --protocol NAME --data PLACE`.

A protocol decides the split, the number of images, their resolution and the metrics; the user names the data and the weight
files. A new one is one line here and one paragraph in docs/scoring.md. Imports no torch.
"""

from dataclasses import dataclass

from t2i.errors import InputError


@dataclass(frozen=True)
class NamedProtocol:
    """Settings of a scoring that others can repeat.

    Attributes:
        kind: of the data's address; None: `data` is the whole address.
        data: the address; None: the user names it.
        part: the split that the address must name with `?split=`; None: it needs none.
        files: options that its metrics need.
        about: a description, with its source.
    """

    kind: str | None
    data: str | None
    split: str
    n: int
    resolution: int
    metrics: tuple[str, ...]
    files: tuple[str, ...]
    about: str
    part: str | None = None


PROTOCOLS: dict[str, NamedProtocol] = {
    "coco-30k": NamedProtocol(
        "coco",
        None,
        "val",
        30_000,
        256,
        ("fid", "clip-vit-*"),
        ("inception", "clip"),
        "zero-shot: 30,000 images of val2014 with one caption each, centre crop (Ramesh et al., 2021)",
        part="train2014",
    ),
    "cub-test": NamedProtocol(
        "cub",
        None,
        "test",
        2_933,
        256,
        ("kid", "r-precision-clip-vit-*"),
        ("inception", "clip"),
        "the 50 classes that training never shows, each image once: too few for a FID (Reed et al., 2016)",
    ),
    "flickr30k-karpathy": NamedProtocol(
        "flickr30k",
        None,
        "test",
        1_000,
        256,
        ("kid", "clip-vit-*", "retrieval-clip-vit-*"),
        ("inception", "clip"),
        "the 1,000 test images of Karpathy and Fei-Fei (2015), their first captions",
    ),
    "shapes-heldout": NamedProtocol(
        None,
        "shapes-2",
        "heldout",
        1_000,
        32,
        ("faithfulness", "fid-shapes", "kid-shapes", "clip-aligned"),
        (),
        "embedded scenes with combinations that training never shows, read back by their oracle",
    ),
}


def by_name(name: str) -> NamedProtocol:
    """Returns the protocol of that name.

    Raises:
        InputError: there is none.
    """
    if name not in PROTOCOLS:
        raise InputError(f"protocol {name[:80]!r} is unknown; choose from: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def settle(name: str, given: dict[str, object]) -> dict[str, object]:
    """Returns the options of a scoring under a protocol: data, split, n, resolution, metrics.

    Args:
        given: the options as typed, None where one was not; and the files of extractors.

    Raises:
        InputError: one contradicts the protocol, or a weight file is missing.
    """
    found = by_name(name)
    fixed: dict[str, object] = {
        "split": found.split,
        "n": found.n,
        "resolution": found.resolution,
        "metrics": list(found.metrics),
    }
    if found.data is not None:
        fixed["data"] = found.data
    for option, value in fixed.items():
        if given.get(option) not in (None, value):
            words = ",".join(value) if isinstance(value, list) else value
            raise InputError(
                f"--{option} {_words(given[option])} contradicts the protocol {name}, which has {words}; drop one of the two"
            )
    if missing := [file for file in found.files if given.get(file) is None]:
        raise InputError(f"protocol {name} scores {', '.join(found.metrics)}; name the weights with --{missing[0]}")
    if found.data is None:
        fixed["data"] = _address(name, found, given.get("data"))
    return fixed


def _words(value: object) -> object:
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _address(name: str, found: NamedProtocol, data: object) -> str:
    """Returns the address of the user's data as the protocol reads it."""
    from t2i.data import parse_address
    from t2i.data.address import Address

    if not isinstance(data, str):
        raise InputError(
            f"protocol {name} is of {found.kind}, which does not come with t2i; name its folder with --data"
        )
    address = parse_address(data)
    if address.kind != found.kind:
        raise InputError(
            f"--data {data} is {address.kind}, and the protocol {name} is of {found.kind}; drop one of the two"
        )
    if found.part is None:
        return data
    if address.options.get("split") not in (None, found.part):
        own = address.options["split"]
        raise InputError(f"--data {data} has split={own}, and the protocol {name} {found.part}; drop one of the two")
    return str(Address(address.kind, address.place, {**address.options, "split": found.part}))
