"""Scores the same PNGs with the same weights by t2i and other packages; prints the differences as a markdown table.

    pip install torch-fidelity pytorch-fid clean-fid
    python benchmarks/eval_parity.py --n 200 --sizes 64,256

All use one random state dict of the Inception, so only the agreement of the values means something; the CLIP is a tiny random
one. `same` is yes if both packages promise the same protocol; otherwise the last column names the difference. On our side,
FID of few images is forced; the other packages have no such rule.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from t2i.data import View, open_dataset
from t2i.extractors.inception import InceptionExtractor
from t2i.extractors.inception_network import Inception
from t2i.metrics.clip_score import clip_score
from t2i.metrics.frechet import Gaussian, frechet_distance
from t2i.metrics.inception_score import inception_score
from t2i.metrics.kernel import kernel_distance
from t2i.metrics.neighbours import prdc

BATCH = 8
AIM = 1e-4


class Row(NamedTuple):
    side: int
    metric: str
    peer: str
    theirs: float
    ours: float
    why: str = ""  # they differ by protocol; empty: they promise the same


def random_weights(seed: int = 0) -> dict[str, Tensor]:
    """Returns weights of the FID Inception, with 1008 classes, that preserve the scale of activations."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, tensor in Inception().state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        if key.endswith("conv.weight"):
            weights[key] = noise * (2 / tensor[0].numel()) ** 0.5
        elif key.endswith(("bn.weight", "bn.running_var")):
            weights[key] = 1 + 0.3 * noise.tanh()
        else:
            weights[key] = 0.1 * noise if tensor.is_floating_point() else noise
    weights["fc.weight"] = torch.randn(1008, 2048, generator=generator) * 0.05
    weights["fc.bias"] = torch.randn(1008, generator=generator)
    return weights


def write_images(folder: Path, data: str, n: int, side: int, noise: float) -> np.ndarray:
    """Writes rendered shapes with noise as PNGs; returns them as uint8 [n, side, side, 3] in the order of their names."""
    folder.mkdir(parents=True)
    dataset = open_dataset(data, "val", View(side, limit=n))
    rng = np.random.default_rng(len(data) + side)
    images = []
    for k in range(n):
        clean = dataset.images([k])[0].astype(np.float64)
        images.append((clean + noise * rng.standard_normal(clean.shape)).round().clip(0, 255).astype(np.uint8))
        Image.fromarray(images[-1]).save(folder / f"{k:05d}.png")
    return np.stack(images)


def nchw(images_NHWC: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images_NHWC)).permute(0, 3, 1, 2).contiguous()


# ---- the peers -----------------------------------------------------------------------------------------------------


def torch_fidelity(fake: Path, real: Path, weights: Path, n: int) -> dict[str, float]:
    from torch_fidelity import calculate_metrics

    found = calculate_metrics(
        input1=str(fake), input2=str(real), cuda=False, batch_size=BATCH, fid=True, kid=True, isc=True, prc=True,
        kid_subsets=1, kid_subset_size=n, isc_splits=10, samples_shuffle=False, save_cpu_ram=False, verbose=False,
        cache=False, feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(weights),
    )  # fmt: skip
    names = {"fid": "frechet_inception_distance", "kid": "kernel_inception_distance_mean"}
    names |= {"inception-score": "inception_score_mean", "precision": "precision", "recall": "recall"}
    return {ours: found[theirs] for ours, theirs in names.items()}


def pytorch_fid_network(state: dict[str, Tensor], **options: bool) -> nn.Module:
    from pytorch_fid import inception

    inception.load_state_dict_from_url = lambda *args, **kwargs: state  # which would download its weights
    return inception.InceptionV3([3], **options).eval()


def pytorch_fid(fake: Path, real: Path, state: dict[str, Tensor]) -> float:
    from pytorch_fid.fid_score import calculate_fid_given_paths

    pytorch_fid_network(state)
    return float(calculate_fid_given_paths([str(fake), str(real)], BATCH, torch.device("cpu"), 2048, num_workers=0))


def clean_fid(fake: Path, real: Path, state: dict[str, Tensor], n: int) -> dict[str, float]:
    """Scores with clean-fid; pytorch-fid's network replaces its network, which is a TorchScript file with weights."""
    from cleanfid import fid

    network = pytorch_fid_network(state, resize_input=False, normalize_input=False)
    options = {"mode": "clean", "num_workers": 0, "batch_size": BATCH, "device": torch.device("cpu"), "verbose": False}

    def features(folder: Path) -> np.ndarray:
        def extract(x: Tensor) -> Tensor:
            return network((x - 128) / 128)[0][:, :, 0, 0]

        return fid.get_folder_features(str(folder), extract, **options)

    ours, theirs = features(fake), features(real)
    moments = [part for x in (ours, theirs) for part in (np.mean(x, axis=0), np.cov(x, rowvar=False))]
    kid = fid.kernel_distance(theirs, ours, num_subsets=1, max_subset_size=n)
    return {"fid": float(fid.frechet_distance(*moments)), "kid": kid}


class Given(nn.Module):
    """Replaces a network by features that were computed before."""

    num_features = 2048

    def forward(self, x: Tensor) -> Tensor:
        return x


def torchmetrics(fake: np.ndarray, real: np.ndarray, weights: Path, antialias: bool, n: int) -> dict[str, float]:
    from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance

    network = FrechetInceptionDistance(
        feature=2048, feature_extractor_weights_path=str(weights), antialias=antialias
    ).inception
    assert isinstance(network, NoTrainInceptionV3)
    network.features_list = ["2048", "logits_unbiased"]
    found: dict[str, Any] = {
        "fid": FrechetInceptionDistance(feature=Given()),
        "kid": KernelInceptionDistance(feature=Given(), subsets=1, subset_size=n),
        "inception-score, 1 part": InceptionScore(feature=Given(), splits=1),
    }
    with torch.inference_mode():
        for images, is_real in ((real, True), (fake, False)):
            for start in range(0, n, BATCH):
                pooled, logits = network._torch_fidelity_forward(nchw(images[start : start + BATCH]))
                for name in ("fid", "kid"):
                    found[name].update(pooled.flatten(1), real=is_real)
                if not is_real:
                    found["inception-score, 1 part"].update(logits)
    values = {name: metric.compute() for name, metric in found.items()}
    return {name: float(value[0] if isinstance(value, tuple) else value) for name, value in values.items()}


def clip_rows(side: int, images: np.ndarray, captions: list[str], folder: Path) -> Iterator[Row]:
    """Scores with torchmetrics' CLIP score on a tiny random CLIP; unwraps outputs of transformers 5, on which it fails."""
    from torchmetrics.functional.multimodal.clip_score import _clip_score_update
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, CLIPProcessor

    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from builders.tiny_text_models import save_clip_with_images
    from t2i.extractors import open_extractor

    save_clip_with_images(folder)

    class Unwrapped(CLIPModel):
        def get_image_features(self, *args: Any, **kwargs: Any) -> Any:
            return super().get_image_features(*args, **kwargs).pooler_output

        def get_text_features(self, *args: Any, **kwargs: Any) -> Any:
            return super().get_text_features(*args, **kwargs).pooler_output

    ours: Any = open_extractor(f"clip:{folder}")
    value = clip_score(ours.features(images), ours.text_features(captions)).value
    for backend, why in (("pil", ""), ("torchvision", "resized by torchvision, not Pillow: a grey level apart")):
        processor = CLIPProcessor(
            AutoImageProcessor.from_pretrained(folder, backend=backend), AutoTokenizer.from_pretrained(folder)
        )
        with torch.inference_mode():
            model = Unwrapped.from_pretrained(folder).eval()
            scores, _ = _clip_score_update(list(nchw(images)), captions, model, processor)
        yield Row(side, "clip", "torchmetrics", float(scores.clamp(min=0).mean()), value, why)


# ---- ours, beside them ---------------------------------------------------------------------------------------------


def rows(side: int, n: int, place: Path, state: dict[str, Tensor], weights: Path) -> Iterator[Row]:
    fake_dir, real_dir = place / f"fake-{side}", place / f"real-{side}"
    fake = write_images(fake_dir, "shapes-2", n, side, noise=30)
    real = write_images(real_dir, "shapes-3", n, side, noise=3)
    ours: dict[str, dict[str, float]] = {}
    for resize in ("legacy", "torch", "clean"):
        extractor = InceptionExtractor(weights, resize)
        x, y = extractor.features(fake), extractor.features(real)
        logits = x @ extractor.classes.T if extractor.classes is not None else x
        ours[resize] = {
            "fid": frechet_distance(x, Gaussian.of(y), force=True),
            "kid": kernel_distance(x, y),
            "inception-score": inception_score(logits)[0],
            "inception-score, 1 part": inception_score(logits, 1)[0],
            **vars(prdc(x, y)),
        }

    def beside(peer: str, theirs: dict[str, float], resize: str, why: str = "") -> Iterator[Row]:
        for name, value in theirs.items():
            yield Row(side, name, peer, value, ours[resize][name], why)

    yield from beside("torch-fidelity", torch_fidelity(fake_dir, real_dir, weights, n), "legacy")
    yield from beside("torchmetrics, antialias=False", torchmetrics(fake, real, weights, False, n), "legacy")
    antialiased = torchmetrics(fake, real, weights, True, n)
    yield from beside("torchmetrics", antialiased, "legacy", "resizes with antialiasing, as no other package does")
    theirs = {"fid": pytorch_fid(fake_dir, real_dir, state)}
    yield from beside("pytorch-fid", theirs, "torch")
    yield from beside("pytorch-fid", theirs, "legacy", "PyTorch's bilinear resize, not TensorFlow's")
    clean = clean_fid(fake_dir, real_dir, state, n)
    yield from beside("clean-fid", clean, "clean")
    yield from beside("clean-fid", clean, "legacy", "Pillow's bicubic resize, not TensorFlow's")
    dataset = open_dataset("shapes-2", "val", View(side, limit=n))
    yield from clip_rows(side, fake, [options[0] for options in dataset.captions], place / f"clip-{side}")


def show(row: Row) -> str:
    relative = abs(row.ours - row.theirs) / abs(row.theirs) if row.theirs else abs(row.ours)
    same = "no" if row.why else "yes" if relative <= AIM else "yes, FAILS"
    cells = (
        f"{row.side}",
        row.metric,
        row.peer,
        f"{row.theirs:.6g}",
        f"{row.ours:.6g}",
        f"{relative:.1e}",
        same,
        row.why,
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200, help="images on each side")
    parser.add_argument("--sizes", default="64,256", help="pixels a side")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(f"{given.n} generated and real images, {torch.get_num_threads()} threads\n")
    print("| px | metric | peer | theirs | ours | relative difference | same | what differs |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as place:
        state, weights = random_weights(), Path(place) / "random.pth"
        torch.save(state, weights)
        for side in map(int, given.sizes.split(",")):
            for row in rows(side, given.n, Path(place), state, weights):
                print(show(row), flush=True)


if __name__ == "__main__":
    main()
