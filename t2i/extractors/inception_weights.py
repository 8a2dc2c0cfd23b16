"""Reads weights of the FID Inception in any common layout.

Known layouts are those of pytorch-fid's and torch-fidelity's files (the same), of pytorch-fid's module, and of the state dict
of StyleGAN's TorchScript file. No code in a file is run.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t2i.errors import InputError
from t2i.extractors.inception_network import Inception, Mixed
from t2i.files import open_regular
from t2i.tensors import read_state_dict

_FILE = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's name; pytorch-fid's is pt_inception-...

# pytorch-fid's module groups layers between poolings: `blocks.2.3` is the fourth layer of the third group.
_GROUPS = (
    ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"),
    ("Conv2d_3b_1x1", "Conv2d_4a_3x3"),
    ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    ("Mixed_7a", "Mixed_7b", "Mixed_7c"),
)


class Loaded(NamedTuple):
    network: Inception  # frozen, folded and channels_last
    classes: NDArray[np.float32] | None  # [1008, 2048]: the last layer without its bias, if the file has it
    digest: str  # sha256 of the file


def load_inception(path: Path, device: str = "cpu") -> Loaded:
    """Reads the FID Inception's weights.

    Args:
        path: a `.safetensors` or `.pth` file, in one of the layouts above.

    Raises:
        InputError: the file does not exist, or holds no weights or those of another network.
    """
    data = read_state_dict(path, "Inception weights", f"download {_FILE} and name it")
    with torch.random.fork_rng(devices=[]):  # random initial weights must not advance the caller's generator
        network = Inception()
    weights = _from_tensorflow(data, network) if any(k.startswith("layers.") for k in data) else _rename(data)
    expected = network.state_dict()
    if weights.get("fc.bias", torch.empty(0)).numel() == 1000 or any(key.startswith("AuxLogits.") for key in weights):
        raise InputError(f"{path} holds torchvision's ImageNet classifier, not the FID Inception; name {_FILE}")
    state = {key: weights.get(key) for key in expected if not key.endswith("num_batches_tracked")}
    for key, tensor in state.items():
        if tensor is None or tensor.shape != expected[key].shape:
            shape = list(expected[key].shape)
            problem = "is missing" if tensor is None else f"has shape {list(tensor.shape)}, not {shape}"
            raise InputError(f"{path} is not the FID Inception: {key} {problem}; name {_FILE}")
    network.load_state_dict(cast(dict[str, Tensor], state), strict=False)
    network.requires_grad_(False).eval().fold()
    network.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    classes = weights.get("fc.weight")
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Loaded(network, None if classes is None else classes.float().numpy(), digest)


def _rename(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {f"blocks.{i}.{j}.": f"{name}." for i, group in enumerate(_GROUPS) for j, name in enumerate(group)}
    renamed = {}
    for key, tensor in weights.items():
        prefix = ".".join(key.split(".")[:3]) + "."
        renamed[names[prefix] + key.removeprefix(prefix) if prefix in names else key] = tensor
    return renamed


# The state dict of StyleGAN's file has the names of TensorFlow's graph, with several spellings of the leaves.
_TENSORFLOW_LEAVES = {
    "conv.weight": ("conv_weight", "weight"),
    "bn.weight": ("bn_weight",),
    "bn.bias": ("bn_bias", "bias", "beta"),
    "bn.running_mean": ("bn_running_mean", "running_mean", "mean"),
    "bn.running_var": ("bn_running_var", "running_var", "var"),
}


def _from_tensorflow(weights: Mapping[str, Tensor], network: Inception) -> dict[str, Tensor]:
    flat = {key.replace(".", "_"): tensor for key, tensor in weights.items()}
    renamed = {"fc.weight": flat["output_weight"]} if "output_weight" in flat else {}
    for place, (ours, block) in enumerate(network.named_children()):
        theirs = _numbered("conv", place) if place < 5 else _numbered("mixed", place - 5)
        paths = _tensorflow_paths(block) if isinstance(block, Mixed) else {theirs: ours}
        for path, name in paths.items():
            at, to = (
                (f"layers_{theirs}_{path}", f"{ours}.{name}") if isinstance(block, Mixed) else (f"layers_{path}", name)
            )
            for leaf, spellings in _TENSORFLOW_LEAVES.items():
                renamed |= {f"{to}.{leaf}": flat[f"{at}_{one}"] for one in spellings if f"{at}_{one}" in flat}
            if f"{to}.bn.bias" in renamed:  # TensorFlow's batch normalisation has no scale
                renamed.setdefault(f"{to}.bn.weight", torch.ones_like(renamed[f"{to}.bn.bias"]))
    return renamed


def _tensorflow_paths(block: Mixed) -> dict[str, str]:
    """Maps TensorFlow's names of a block's convolutions to ours: longer branches and the pooling are numbered towers."""
    towers = [chain for chain in block.chains if len(chain) > 1]
    paths = {}
    for chain in block.chains:
        if len(chain) == 1:
            paths["conv"] = chain[0][0]
    for number, chain in enumerate(towers):
        for step, names in enumerate(chain):
            for end, name in enumerate(names):
                conv = _numbered("mixed_conv", end) if len(names) > 1 else _numbered("conv", step)
                paths[f"{_numbered('tower', number)}_{conv}"] = name
    if block.pool != "reduce":
        paths[f"{_numbered('tower', len(towers))}_conv"] = "branch_pool"
    return paths


def _numbered(word: str, number: int) -> str:
    return f"{word}_{number}" if number else word
