"""Named protocols, such as "COCO 30k" in papers: `t2i eval score RUN --protocol NAME --data PLACE`.

A protocol sets the split, the number of images, their resolution and the metrics; the user names the data and the weight
files. A new protocol is one entry here and one paragraph in docs/scoring.md. Imports no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from t2i.errors import InputError


@dataclass(frozen=True)
class NamedProtocol:
    """Settings of a scoring that others can repeat.

    Attributes:
        kind: kind of data, the first part of its address; None: `data` is the address.
        data: address of the data; None: the user names it.
        part: the split that the address must name with `?split=`, if any.
        files: options for the weights that the metrics need.
        about: a description with its source.
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
        "the 50 classes that are not in the training set, each image once: too few for a FID (Reed et al., 2016)",
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
        "embedded scenes with combinations that are not in the training set, read by the oracle",
    ),
}


def by_name(name: str) -> NamedProtocol:
    """Returns the protocol of that name; raises InputError if there is none."""
    if name not in PROTOCOLS:
        raise InputError(f"protocol {name[:80]!r} is unknown; choose from: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def settle(name: str, options: Mapping[str, object]) -> dict[str, Any]:
    """Returns the options that a protocol sets: data, split, n, resolution, metrics.

    Args:
        options: the options that the user set; None or missing if unset.

    Raises:
        InputError: an option contradicts the protocol, or a weight file is missing.
    """
    protocol = by_name(name)
    fixed: dict[str, Any] = {
        "split": protocol.split,
        "n": protocol.n,
        "resolution": protocol.resolution,
        "metrics": list(protocol.metrics),
    }
    if protocol.data is not None:
        fixed["data"] = protocol.data
    for option, value in fixed.items():
        if options.get(option) not in (None, value):
            raise InputError(
                f"--{option} {_words(options[option])} contradicts the protocol {name}, which has {_words(value)}; drop one "
                "of the two"
            )
    if missing := [file for file in protocol.files if options.get(file) is None]:
        raise InputError(f"protocol {name} scores {', '.join(protocol.metrics)}; name the weights with --{missing[0]}")
    if protocol.data is None:
        fixed["data"] = _address(name, protocol, options.get("data"))
    return fixed


def _words(value: object) -> object:
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _address(name: str, protocol: NamedProtocol, data: object) -> str:
    """Returns the address of the user's data, with the protocol's part."""
    from t2i.data import parse_address
    from t2i.data.address import Address

    if not isinstance(data, str):
        raise InputError(
            f"protocol {name} needs {protocol.kind}, which does not ship with t2i; name its folder with --data"
        )
    address = parse_address(data)
    if address.kind != protocol.kind:
        raise InputError(
            f"--data {data} is {address.kind}, but the protocol {name} needs {protocol.kind}; drop one of the two"
        )
    if protocol.part is None:
        return data
    if (part := address.options.get("split")) not in (None, protocol.part):
        raise InputError(
            f"--data {data} has split={part}, but the protocol {name} needs {protocol.part}; drop one of the two"
        )
    return str(Address(address.kind, address.place, {**address.options, "split": protocol.part}))
