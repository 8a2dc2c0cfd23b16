"""The FID Inception: TensorFlow's graph of 2015-12-05 up to its last pooling, in PyTorch (Szegedy et al., 2015).

It differs from torchvision's Inception v3 in its weights, in average pooling, which excludes the padding, and in the last block,
which has max pooling. Folded batch normalisation, channels_last memory and pre-packed weights double the speed on a CPU;
features are equal to 1e-4.
"""

from collections.abc import Mapping
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE_SIZE = 299
DIM = 2048
_BN_EPS = 1e-3

Kernel = int | tuple[int, int]
Pool = Literal["average", "max", "reduce"]
# A branch is a chain of convolutions (width, kernel); a list at its end is a fork whose outputs are concatenated.
Conv = tuple[int, Kernel]
Branch = list[Conv | list[Conv]]


class ConvNormReLU(nn.Module):
    """Convolution, batch normalisation with fixed statistics, ReLU; `fold` merges the first two."""

    def __init__(self, width_in: int, width: int, kernel: Kernel, stride: int = 1, padding: Kernel = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width, kernel, stride, padding, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(width, eps=_BN_EPS)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x_BCHW)), inplace=True)

    def fold(self) -> None:
        """y = g (Wx - m) / s + b  ->  y = (g/s W) x + (b - g m / s), computed in float64."""
        bn = cast(nn.BatchNorm2d, self.bn)
        mean, variance = cast(Tensor, bn.running_mean).double(), cast(Tensor, bn.running_var).double()
        scale = bn.weight.detach().double() / torch.sqrt(variance + bn.eps)
        self.conv.weight = nn.Parameter((self.conv.weight.detach().double() * scale[:, None, None, None]).float())
        self.conv.bias = nn.Parameter((bn.bias.detach().double() - mean * scale).float())
        self.bn = nn.Identity()


class Mixed(nn.Module):
    """Concatenated branches of convolutions and one of pooling. Their names are the keys of the weights file."""

    def __init__(self, width_in: int, branches: Mapping[str, Branch], pool: Pool, pool_width: int = 0) -> None:
        """Builds the branches.

        Args:
            pool: `reduce` halves the grid, in the pooling and in the last convolution of each branch.
            pool_width: width of the convolution after the pooling; `reduce` does not have one.
        """
        super().__init__()
        self.pool = pool
        self.chains: list[list[list[str]]] = []
        self.width = 0
        for name, branch in branches.items():
            width, chain = width_in, []
            for i, step in enumerate(branch):
                stride = 2 if pool == "reduce" and i == len(branch) - 1 else 1
                number = f"_{i + 1}" if len(branch) > 1 else ""
                fork = step if isinstance(step, list) else [step]
                names = [f"{name}{number}{end}" for end in ("ab" if isinstance(step, list) else [""])]
                for key, (out, kernel) in zip(names, fork, strict=True):
                    self.add_module(key, ConvNormReLU(width, out, kernel, stride, 0 if stride == 2 else _same(kernel)))
                width = sum(out for out, _ in fork)
                chain.append(names)
            self.chains.append(chain)
            self.width += width
        if pool != "reduce":
            self.branch_pool = ConvNormReLU(width_in, pool_width, 1)
        self.width += width_in if pool == "reduce" else pool_width

    def forward(self, x_BCHW: Tensor) -> Tensor:
        outputs = []
        for chain in self.chains:
            y = x_BCHW
            for names in chain:
                ends = [self.get_submodule(name)(y) for name in names]
                y = ends[0] if len(ends) == 1 else torch.cat(ends, dim=1)
            outputs.append(y)
        return torch.cat([*outputs, self._pooled(x_BCHW)], dim=1)

    def _pooled(self, x_BCHW: Tensor) -> Tensor:
        if self.pool == "reduce":
            return F.max_pool2d(x_BCHW, kernel_size=3, stride=2)
        if self.pool == "max":
            return self.branch_pool(F.max_pool2d(x_BCHW, kernel_size=3, stride=1, padding=1))
        return self.branch_pool(F.avg_pool2d(x_BCHW, kernel_size=3, stride=1, padding=1, count_include_pad=False))


def _same(kernel: Kernel) -> Kernel:
    return kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)


def _block_a(width_in: int, pool_width: int) -> Mixed:
    branches: dict[str, Branch] = {
        "branch1x1": [(64, 1)],
        "branch5x5": [(48, 1), (64, 5)],
        "branch3x3dbl": [(64, 1), (96, 3), (96, 3)],
    }
    return Mixed(width_in, branches, "average", pool_width)


def _block_c(width: int) -> Mixed:
    row, column = (1, 7), (7, 1)
    branches: dict[str, Branch] = {
        "branch1x1": [(192, 1)],
        "branch7x7": [(width, 1), (width, row), (192, column)],
        "branch7x7dbl": [(width, 1), (width, column), (width, row), (width, column), (192, row)],
    }
    return Mixed(768, branches, "average", 192)


def _block_e(width_in: int, pool: Pool) -> Mixed:
    fork: list[Conv] = [(384, (1, 3)), (384, (3, 1))]
    branches: dict[str, Branch] = {
        "branch1x1": [(320, 1)],
        "branch3x3": [(384, 1), fork],
        "branch3x3dbl": [(448, 1), (384, 3), fork],
    }
    return Mixed(width_in, branches, pool, 192)


class Inception(nn.Module):
    """Maps float32 [B, 3, 299, 299] in about [-1, 1] to float32 [B, 2048], the mean over the last grid."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNormReLU(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNormReLU(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNormReLU(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvNormReLU(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNormReLU(80, 192, 3)
        self.Mixed_5b = _block_a(192, pool_width=32)
        self.Mixed_5c = _block_a(256, pool_width=64)
        self.Mixed_5d = _block_a(288, pool_width=64)
        self.Mixed_6a = Mixed(288, {"branch3x3": [(384, 3)], "branch3x3dbl": [(64, 1), (96, 3), (96, 3)]}, "reduce")
        self.Mixed_6b = _block_c(128)
        self.Mixed_6c = _block_c(160)
        self.Mixed_6d = _block_c(160)
        self.Mixed_6e = _block_c(192)
        long_branch: Branch = [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)]
        self.Mixed_7a = Mixed(768, {"branch3x3": [(192, 1), (320, 3)], "branch7x7x3": long_branch}, "reduce")
        self.Mixed_7b = _block_e(1280, "average")
        self.Mixed_7c = _block_e(2048, "max")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x_BCHW)))
        x = F.max_pool2d(x, kernel_size=3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, kernel_size=3, stride=2)
        for block in list(self.children())[5:]:
            x = block(x)
        return x.mean(dim=(2, 3))

    def fold(self) -> "Inception":
        """Folds every batch normalisation into its convolution, in place."""
        for module in self.modules():
            if isinstance(module, ConvNormReLU):
                module.fold()
        return self


class PackedConvReLU(nn.Module):
    """A folded `ConvNormReLU` whose weights are packed for oneDNN once, not in each call."""

    def __init__(self, layer: ConvNormReLU, input_shape: torch.Size) -> None:
        super().__init__()
        conv = layer.conv
        self._how = (list(cast(tuple[int, int], conv.padding)), list(conv.stride), list(conv.dilation), 1)
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(conv.weight.detach(), *self._how, list(input_shape))
        self._bias = cast(Tensor, conv.bias).detach()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(x_BCHW, self._weight, self._bias, *self._how, "relu", [], "")


@torch.no_grad()
def pack(network: Inception, batch: int) -> Inception:
    """Packs every convolution of a folded network on a CPU in place, for batches of this size; a third faster.

    Uses the operators that torch.compile generates for convolutions. Without these the network is returned unchanged.
    """
    operators = ("_reorder_convolution_weight", "_convolution_pointwise")
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in operators):
        return network
    shapes: dict[nn.Module, torch.Size] = {}

    def note(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        shapes[layer] = given[0].shape

    layers = [module for module in network.modules() if isinstance(module, ConvNormReLU)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    network(torch.zeros(batch, 3, IMAGE_SIZE, IMAGE_SIZE).contiguous(memory_format=torch.channels_last))
    for hook in hooks:
        hook.remove()
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, ConvNormReLU):
                setattr(parent, name, PackedConvReLU(layer, shapes[layer]))
    return network
