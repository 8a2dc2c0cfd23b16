"""The FID Inception against torch-fidelity, pytorch-fid and torchmetrics, on one random state dict."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from t2i.errors import InputError
from t2i.extractors import open_extractor
from t2i.extractors.batches import exact_float32
from t2i.extractors.inception import InceptionExtractor
from t2i.extractors.inception_network import Inception, PackedConvReLU, pack
from t2i.extractors.inception_weights import load_inception
from t2i.metrics.frechet import Gaussian, frechet_distance

PYTORCH_FID_GROUPS = [
    ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"],
    ["Conv2d_3b_1x1", "Conv2d_4a_3x3"],
    ["Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"],
    ["Mixed_7a", "Mixed_7b", "Mixed_7c"],
]


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Returns random weights that preserve the scale of activations, with effective batch norms."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for key, tensor in Inception().state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        if key.endswith("conv.weight"):
            weights[key] = noise * (2 / tensor[0].numel()) ** 0.5
        elif key.endswith(("bn.weight", "bn.running_var")):
            weights[key] = 1 + 0.3 * noise.tanh()
        else:
            weights[key] = 0.1 * noise if tensor.is_floating_point() else noise
    weights["fc.weight"] = torch.randn(1008, 2048, generator=generator) * 0.02
    weights["fc.bias"] = torch.zeros(1008)
    return weights


@pytest.fixture(scope="module")
def weights(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def extractor(weights: Path) -> InceptionExtractor:
    return InceptionExtractor(weights, "legacy")


def pictures(n: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Returns smooth colours with noise, so that images differ at every scale."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.uniform(0, 200, (n, 4, 4, 3)), np.ones((1, -(-height // 4), -(-width // 4), 1)))
    return (coarse[:, :height, :width] + rng.uniform(0, 55, (n, height, width, 3))).astype(np.uint8)


def nchw(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module")
def peer(weights: Path) -> Any:
    pytest.importorskip("torch_fidelity")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    return FeatureExtractorInceptionV3("peer", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights))


@pytest.mark.parametrize("size", [(299, 299), (64, 40), (301, 420)])
def test_features_equal_torch_fidelity(extractor: InceptionExtractor, peer: Any, size: tuple[int, int]) -> None:
    images = pictures(3, *size)
    theirs, logits = peer(nchw(images))
    ours = extractor.features(images)
    assert ours.shape == (3, 2048) and ours.dtype == np.float32
    assert theirs.std(dim=0).mean() > 0.01  # the pictures are told apart
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4 * float(theirs.abs().max()), rtol=0)
    assert extractor.classes is not None
    np.testing.assert_allclose(ours @ extractor.classes.T, logits, atol=1e-4 * float(logits.abs().max()), rtol=0)


@pytest.mark.filterwarnings("ignore:FID of")
def test_distance_equals_torchmetrics(extractor: InceptionExtractor, weights: Path) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    real, fake = pictures(6, 48, 48, seed=1), pictures(5, 48, 48, seed=2)
    peer: Any = FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=str(weights), antialias=False)
    peer.update(nchw(real), real=True)
    peer.update(nchw(fake), real=False)
    ours = frechet_distance(extractor.features(fake), Gaussian.of(extractor.features(real)), force=True)
    assert ours == pytest.approx(float(peer.compute()), rel=1e-4)


def test_folding_changes_nothing(state: dict[str, torch.Tensor]) -> None:
    network = Inception()
    network.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})
    network.eval()
    x = (nchw(pictures(2, 299, 299)).float() - 128) / 128
    with torch.inference_mode():
        before = network(x)
        after = network.fold().to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    assert float((after - before).abs().max()) < 1e-4 * max(1.0, float(before.abs().max()))


def test_packing_changes_nothing(weights: Path) -> None:
    x = ((nchw(pictures(2, 299, 299)).float() - 128) / 128).to(memory_format=torch.channels_last)
    plain, packed = load_inception(weights).network, pack(load_inception(weights).network, 2)
    assert any(isinstance(module, PackedConvReLU) for module in packed.modules())
    with torch.inference_mode():
        before, after = plain(x), packed(x)
    assert float((after - before).abs().max()) < 2e-5 * float(before.abs().max())


def test_a_picture_has_one_feature_whatever_the_batch(extractor: InceptionExtractor) -> None:
    images = pictures(10, 20, 20)
    together = extractor.features(images)
    np.testing.assert_array_equal(extractor.features(images[:1]), together[:1])
    np.testing.assert_array_equal(extractor.features(images[5:8]), together[5:8])
    assert extractor.features(images[:0]).shape == (0, 2048)


def test_all_weight_layouts_are_the_same_network(
    state: dict[str, torch.Tensor], extractor: InceptionExtractor, tmp_path: Path
) -> None:
    module_layout = {
        f"blocks.{i}.{j}.{key.removeprefix(name + '.')}": tensor
        for i, group in enumerate(PYTORCH_FID_GROUPS)
        for j, name in enumerate(group)
        for key, tensor in state.items()
        if key.startswith(f"{name}.") and not key.endswith("num_batches_tracked")
    }
    save_file(module_layout, tmp_path / "module.safetensors")
    other = open_extractor(f"inception:{tmp_path / 'module.safetensors'}", "legacy")
    images = pictures(1, 32, 32)
    np.testing.assert_array_equal(other.features(images), extractor.features(images))
    assert other.digest() != extractor.digest()
    # Never plain `inception`: these are not the published weights.
    assert other.name == f"inception-{other.digest()[:8]}"
    assert isinstance(other, InceptionExtractor) and other.classes is None  # that module leaves the classifier out
    assert extractor.classes is not None
    np.testing.assert_array_equal(extractor.classes, state["fc.weight"].numpy())


STYLEGAN_BLOCKS = {
    "Conv2d_1a_3x3": "conv",
    "Conv2d_2a_3x3": "conv_1",
    "Conv2d_2b_3x3": "conv_2",
    "Conv2d_3b_1x1": "conv_3",
    "Conv2d_4a_3x3": "conv_4",
    **{f"Mixed_{ours}": "mixed" + (f"_{k}" if k else "") for k, ours in enumerate(
        ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
    )},
}  # fmt: skip
STYLEGAN_TOWERS = {
    "A": {"branch1x1": "conv", "branch5x5": "tower", "branch3x3dbl": "tower_1", "branch_pool": "tower_2.conv"},
    "B": {"branch3x3": "conv", "branch3x3dbl": "tower"},
    "C": {"branch1x1": "conv", "branch7x7": "tower", "branch7x7dbl": "tower_1", "branch_pool": "tower_2.conv"},
    "D": {"branch3x3": "tower", "branch7x7x3": "tower_1"},
    "E": {"branch1x1": "conv", "branch3x3": "tower", "branch3x3dbl": "tower_1", "branch_pool": "tower_2_conv"},
}
STYLEGAN_KINDS = dict(
    zip(("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"), "AAABCCCCDEE", strict=True)
)


def stylegan_key(key: str) -> str:
    """Returns the name of one of our weights in StyleGAN's file, by hand for each kind of block."""
    if key.startswith("fc."):
        return key.replace("fc.", "output.")
    block, *path, layer, leaf = key.split(".")
    where = f"layers.{STYLEGAN_BLOCKS[block]}"
    if not path:
        return f"{where}.{layer}.{leaf}"
    kind = STYLEGAN_KINDS[block.removeprefix("Mixed_")]
    branch, _, step = path[0].partition("_") if path[0] != "branch_pool" else ("branch_pool", "", "")
    tower = STYLEGAN_TOWERS[kind][branch]
    between = "_" if kind == "E" else "."
    if step[-1:] in ("a", "b"):
        tower += f"{between}mixed_conv" + ("_1" if step[-1] == "b" else "")
    elif step:
        tower += f"{between}conv" + (f"_{int(step) - 1}" if step != "1" else "")
    return f"{where}.{tower}.{layer}.{leaf}"


@pytest.mark.parametrize("leaves", [{}, {"conv.weight": "weight", "bn.bias": "beta", "bn.running_mean": "mean",
                                         "bn.running_var": "var"}])  # fmt: skip
def test_stylegan_keeps_the_names_of_tensorflow(
    state: dict[str, torch.Tensor], leaves: dict[str, str], tmp_path: Path
) -> None:
    """Its batch normalisation has no scale, so ours has ones."""
    scale = {key: torch.ones_like(x) if key.endswith("bn.weight") else x for key, x in state.items()}
    theirs = {stylegan_key(key): x for key, x in scale.items() if not key.endswith(("bn.weight", "tracked"))}
    theirs = {
        next((key.replace(a, b) for a, b in leaves.items() if key.endswith(a)), key): x for key, x in theirs.items()
    }
    assert len(theirs) == len([key for key in state if not key.endswith(("bn.weight", "tracked"))])
    assert "layers.mixed_9.tower_1_mixed_conv_1." in " ".join(theirs) and "layers.mixed_4.tower_1.conv_4." in " ".join(
        theirs
    )
    torch.save(theirs, tmp_path / "stylegan.pth")
    torch.save(scale, tmp_path / "plain.pth")
    found, expected = load_inception(tmp_path / "stylegan.pth"), load_inception(tmp_path / "plain.pth")
    for (name, ours), other in zip(
        found.network.state_dict().items(), expected.network.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, other), name
    assert found.classes is not None
    np.testing.assert_array_equal(found.classes, state["fc.weight"].numpy())


def test_features_equal_pytorch_fid(
    state: dict[str, torch.Tensor], weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = pytest.importorskip("pytorch_fid.inception")
    monkeypatch.setattr(peer, "load_state_dict_from_url", lambda *args, **kwargs: state)
    network = peer.InceptionV3([3]).eval()
    images = pictures(2, 64, 40)
    with torch.inference_mode():
        theirs = network(nchw(images).float() / 255)[0][:, :, 0, 0]
    ours = InceptionExtractor(weights, "torch").features(images)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4 * float(theirs.abs().max()), rtol=0)


def test_resizes_differ_and_say_so(extractor: InceptionExtractor, weights: Path) -> None:
    images = pictures(1, 64, 64)
    clean, plain = InceptionExtractor(weights, "clean"), InceptionExtractor(weights, "torch")
    assert [e.resize for e in (clean, extractor, plain)] == ["clean", "legacy", "torch"]
    # pytorch-fid's own steps: [0, 1], bilinear, 2 x - 1
    x = torch.nn.functional.interpolate(nchw(images).float() / 255, size=(299, 299), mode="bilinear")
    network = load_inception(weights).network
    with exact_float32("cpu"):
        expected = network((2 * x - 1).repeat(8, 1, 1, 1).to(memory_format=torch.channels_last))[:1].numpy()
    np.testing.assert_allclose(plain.features(images), expected, atol=1e-4)
    results = [e.features(images) for e in (clean, extractor, plain)]
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(results) for b in results[:i])


def test_clean_resize_is_pillow_without_rounding(extractor: InceptionExtractor) -> None:
    from PIL import Image

    from t2i.extractors.batches import resize_images

    for size in (37, 400):
        images = pictures(2, size, size) // 2 + 60  # no overshoot, which 8 bits would clip between the two passes
        ours = resize_images(images, 299, "clean")
        pil = [Image.fromarray(image).resize((299, 299), Image.Resampling.BICUBIC) for image in images]
        rounded = np.stack([np.asarray(image) for image in pil])
        difference = np.abs(ours.permute(0, 2, 3, 1).numpy() - rounded)
        assert difference.max() <= 1.2 and 0.2 < difference.mean() < 0.35
    hard = np.tile(np.uint8([[0, 0, 255, 255]]), (1, 20, 5))[..., None].repeat(3, axis=3)
    bounded = resize_images(hard, 299, "clean")
    assert (float(bounded.min()), float(bounded.max())) == (0.0, 255.0)
    same = pictures(1, 299, 299)
    for how in ("clean", "legacy", "torch"):
        np.testing.assert_array_equal(resize_images(same, 299, how).permute(0, 2, 3, 1).numpy(), same)


def test_precision_settings_are_put_back() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with pytest.raises(RuntimeError, match="stop"), exact_float32("cpu"):
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
            raise RuntimeError("stop")
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"


class Exploit:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploited"),))


def test_wrong_weights_are_refused_in_one_line(
    state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = {key: torch.zeros(1) for key in state}
    torch.save(small, tmp_path / "shape.pth")
    torch.save({}, tmp_path / "empty.pth")
    torch.save(small | {"fc.bias": torch.zeros(1000)}, tmp_path / "torchvision.pth")
    torch.save(["a list"], tmp_path / "list.pth")
    torch.save({"Conv2d_1a_3x3.conv.weight": Exploit()}, tmp_path / "exploit.pth")
    (tmp_path / "garbage.pth").write_bytes(b"\x80\x02garbage")
    (tmp_path / "garbage.safetensors").write_bytes(b"\xff" * 20)
    for name, message in {
        "none.pth": "not found",
        "shape.pth": "has shape",
        "empty.pth": "is missing",
        "torchvision.pth": "torchvision's ImageNet classifier",
        "list.pth": "not a state dict",
        "exploit.pth": "holds pickled objects besides tensors",
        "garbage.pth": "cannot be read",
        "garbage.safetensors": "cannot be read",
    }.items():
        with pytest.raises(InputError, match=message) as error:
            InceptionExtractor(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "exploited").exists()
    with pytest.raises(ValueError, match="uint8"):
        InceptionExtractor.features(object.__new__(InceptionExtractor), np.zeros((1, 4, 4, 3)))  # pyright: ignore
