"""Loads LPIPS (Zhang et al., CVPR 2018) on a VGG16 whose weight file the user provides; nothing is downloaded.

The linear weights, 6 KB, are part of torchmetrics.
"""

from pathlib import Path
from typing import cast

import torch
from torch import nn

from t2i.errors import InputError
from t2i.files import at_home
from t2i.tensors import read_state_dict

_FILE = "torchvision's vgg16-397923af.pth"


def load_lpips(path: str | None, option: str = "loss.lpips_path", without: str = "set loss.lpips=0") -> nn.Module:
    """Returns the frozen distance, which maps two batches in [-1, 1] to [B, 1, 1, 1].

    Args:
        path: torchvision's VGG16 as `.safetensors`, or as `.pth` (loaded without running code).
        option: the config key or option that names it, for messages.
        without: what to do without the file, for messages.

    Raises:
        InputError: there is no path or file, or the file does not hold the weights of a VGG16.
    """
    from torchmetrics.functional.image import lpips

    if path is None:
        raise InputError(f"loss.lpips needs {option}; download {_FILE} and name it, or {without}")
    weights = read_state_dict(at_home(path), option, f"download {_FILE} and name it, or {without}")
    with torch.device("meta"):  # initialising VGG16 would take seconds
        network = lpips._LPIPS(pretrained=False, net="vgg", pnet_rand=True)
    network.scaling_layer = lpips.ScalingLayer()
    linear = Path(lpips.__file__).with_name("lpips_models") / "vgg.pth"
    network.load_state_dict(torch.load(linear, map_location="cpu", weights_only=True), strict=False, assign=True)
    own = network.net.state_dict()
    for name, tensor in own.items():
        source = "features." + name.split(".", 1)[1]  # sliceN.5.weight is features.5.weight
        weight = weights.get(source)
        if weight is None or weight.shape != tensor.shape:
            what = "is missing" if weight is None else f"has shape {list(weight.shape)}, not {list(tensor.shape)}"
            raise InputError(f"{option} {path} is not a VGG16: {source} {what}; name {_FILE}")
        own[name] = weight
    network.net.load_state_dict(own, assign=True)
    return cast(nn.Module, network.eval().requires_grad_(False))
