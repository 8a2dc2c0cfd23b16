"""The tokenizer as a program and on disk: `t2i train vqvae`, `load_tokenizer`, and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torchvision.models import vgg16

from builders.tiny_tokenizer import make_run
from t2i import checkpoint
from t2i.cli import app
from t2i.data import View, open_dataset
from t2i.errors import InputError
from t2i.families import FAMILIES
from t2i.families.tokenizers import load_tokenizer, save_tokenizer
from t2i.training import journal
from t2i.vqvae.frozen import CHUNK, FrozenTokenizer
from t2i.vqvae.quantizers import QUANTIZERS

SMALL = [
    *("data.resolution=16", "data.limit=64", "autoencoder={width: 8, width_limit: 16, grid: 4}", "device=cpu"),
    *("quantizer={codebook_size: 16, dim: 4, warmup_steps: 1}", "train_batch_size=4", "log_steps=1"),
    *("mixed_precision=no", "max_train_steps=3", "validation_steps=3"),
]


def train(run: Path, *sets: str) -> int:
    words = ["train", "vqvae", "--config", "vqvae-tiny", "--data", "shapes-1", "--run-dir", str(run)]
    return app.main(words + [word for value in (*SMALL, *sets) for word in ("--set", value)])


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return open_dataset("shapes-2", "val", View(32)).images(range(CHUNK + 6))


# ---- the program ----------------------------------------------------------------------------------------------------


def test_a_run_is_watched_and_read_back(tmp_path: Path) -> None:
    assert train(tmp_path / "run", "ema_halflife_images=8") == 0
    records = journal.read(tmp_path / "run" / "journal.jsonl")
    found = {key: value for record in records for key, value in record.items()}
    for key in ("reconstruction", "quantizer_loss", "gradient_norm", "use", "perplexity", "images_per_second"):
        assert isinstance(found[key], float), key
    for split in ("val", "heldout"):
        for key in ("psnr", "ssim", "strict", "colour", "layout"):
            assert isinstance(found[f"{split}_{key}"], float), key
    assert 0 < found["use"] <= 1 and 1 <= found["perplexity"] <= 16
    assert (tmp_path / "run" / "samples" / "step-00000003.png").stat().st_size > 1000
    newest = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    state, _ = checkpoint.load(newest)
    assert set(state) == {"model", "optimizer", "ema"}
    tokenizer = load_tokenizer(tmp_path / "run")
    kept = tokenizer.components()["tokenizer"][1]
    assert all(torch.equal(kept[name], tensor) for name, tensor in state["ema"].items())  # the averaged ones
    assert any(not torch.equal(kept[name], tensor) for name, tensor in state["model"].items())


def test_the_discriminator_learns_from_the_start_and_counts_late(tmp_path: Path) -> None:
    weights = tmp_path / "vgg16.safetensors"
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = vgg16(weights=None).features.state_dict(prefix="features.")
    drawn = {name: torch.randn(tensor.shape) * 0.02 for name, tensor in shapes.items()}
    safetensors.torch.save_file(drawn, weights)
    critic = ("loss.adversarial=0.5", "loss.adversarial_start=2", "discriminator={width: 8, halvings: 2}")
    lpips = ("loss.lpips=1", f"loss.lpips_path={json.dumps(str(weights))}", "train_batch_size=1")
    assert train(tmp_path / "run", *critic, *lpips, "gradient_accumulation_steps=2", "loss.adversarial_ramp=1") == 0
    records = [r for r in journal.read(tmp_path / "run" / "journal.jsonl") if "loss" in r]
    assert [("adversarial" in r) for r in records] == [False, False, True]
    assert all(r["d_gradient"] > 0 and r["lpips"] > 0 for r in records)
    assert 0 < records[2]["adaptive_weight"] <= 10
    state, _ = checkpoint.load(checkpoint.latest(tmp_path / "run" / "checkpoints"))  # type: ignore[arg-type]
    assert set(state) == {"model", "optimizer", "discriminator", "discriminator_optimizer"}


def test_a_collapsed_codebook_ends_the_run(tmp_path: Path, capsys, monkeypatch) -> None:
    def one_code(self, latents):
        found = forward(self, latents)
        return found._replace(indices_BLQ=torch.zeros_like(found.indices_BLQ))

    from t2i.vqvae.quantizers.vector import VectorQuantizer

    forward = VectorQuantizer.forward
    monkeypatch.setattr(VectorQuantizer, "forward", one_code)
    status = train(tmp_path / "run", "max_train_steps=9", "validation_steps=2", "checkpointing_steps=1")
    shown = capsys.readouterr().err
    assert status == 2 and "the codebook has collapsed: at step 6" in shown and "quantizer.kind=scalar" in shown
    assert "Traceback" not in shown and checkpoint.latest(tmp_path / "run" / "checkpoints") is not None


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["quantizer.codebook_size=2000"], "more than the 1024 tokens in all 64 training images"),
        (["quantizer={kind: scalar, levels: [16, 16, 8]}"], "2048 codes, is more than the 1024 tokens"),
        (["quantizer.kind=scalar"], "quantizer.codebook_size: has no effect on scalar"),
        (["autoencoder.grid=32"], "data.resolution 16 must be autoencoder.grid 32"),
        (["loss.lpips=1"], "loss.lpips needs loss.lpips_path"),
        (["loss.lpips=1", "loss.lpips_path=/nowhere/vgg.pth"], "/nowhere/vgg.pth not found"),
        (["loss.lpips=1", f"loss.lpips_path={json.dumps(__file__)}"], "cannot be read as weights"),
        (["quantizer.kind=vectr"], "quantizer.kind"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_left(sets: list[str], words: str, tmp_path: Path, capsys) -> None:
    assert train(tmp_path / "run", *sets) == 2
    shown = capsys.readouterr().err
    assert words in shown and "Traceback" not in shown and not (tmp_path / "run" / "checkpoints").exists()


def test_lpips_of_another_network_is_refused(tmp_path: Path) -> None:
    from t2i.vqvae.perceptual import load_lpips

    safetensors.torch.save_file({"features.0.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"is not a VGG16: features.0.weight has shape \[3, 3\]"):
        load_lpips(str(tmp_path / "other.safetensors"))


# ---- on disk --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(QUANTIZERS))
def test_a_run_codes_pictures(kind: str, tmp_path: Path, pictures: np.ndarray) -> None:
    tokenizer = load_tokenizer(make_run(tmp_path / "run", kind))
    assert (tokenizer.resolution, tokenizer.grid, tokenizer.codebook_size) == (32, 8, 64)
    tokens = tokenizer.encode(pictures[:5])
    assert tokens.shape == (5, 64, tokenizer.codebooks) and tokens.dtype == torch.int64 and len(tokens.unique()) > 3
    made = tokenizer.decode(tokens)
    assert made.shape == (5, 32, 32, 3) and made.dtype == np.uint8 and made.std() > 0
    assert tokenizer.encode(pictures[:0]).shape == (0, 64, tokenizer.codebooks)
    assert tokenizer.decode(tokens[:0]).shape == (0, 32, 32, 3)


def test_a_picture_does_not_depend_on_its_neighbours(tmp_path: Path, pictures: np.ndarray) -> None:
    tokenizer = load_tokenizer(make_run(tmp_path / "run"))
    tokens = tokenizer.encode(pictures)
    made = tokenizer.decode(tokens)
    for rows in ([0], [3, 2], list(range(CHUNK + 5, -1, -1))):
        assert torch.equal(tokenizer.encode(pictures[rows]), tokens[rows])
        assert np.array_equal(tokenizer.decode(tokens[rows]), made[rows])


def test_the_digest_is_of_every_weight_and_of_nothing_else(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    state = torch.random.get_rng_state()
    tokenizer = load_tokenizer(run)
    assert torch.equal(state, torch.random.get_rng_state())  # reading a file draws nothing
    assert isinstance(tokenizer, FrozenTokenizer)
    digest = tokenizer.digest()
    assert load_tokenizer(run).digest() == digest
    assert load_tokenizer(make_run(tmp_path / "longer", max_train_steps=9)).digest() == digest
    for name, tensor in tokenizer.model.state_dict().items():
        kept = tensor.clone()
        tensor[(0,) * tensor.ndim] += 1
        assert tokenizer.digest() != digest, name
        tensor.copy_(kept)
    assert tokenizer.digest() == digest
    scalars = [
        load_tokenizer(
            make_run(tmp_path / f"run{i}", "scalar", quantizer={"kind": "scalar", "levels": levels})
        ).digest()
        for i, levels in enumerate(([4, 8, 2], [8, 4, 2]))
    ]
    assert len(set(scalars)) == 2  # levels are no weights


def test_components_saved_are_the_tokenizer(tmp_path: Path, pictures: np.ndarray) -> None:
    tokenizer = load_tokenizer(make_run(tmp_path / "run"))
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    config, tensors = tokenizer.components()["tokenizer"]
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(dict(tensors), folder / "model.safetensors")
    again = load_tokenizer(folder)
    assert again.digest() == tokenizer.digest()
    assert torch.equal(again.encode(pictures[:3]), tokenizer.encode(pictures[:3]))


def test_what_is_no_tokenizer_is_refused_in_a_line(tmp_path: Path, pictures: np.ndarray) -> None:
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    lacking = make_run(tmp_path / "lacking")
    own = checkpoint.load(lacking / "checkpoints" / "step-00000005")[1]
    own = {key: value for key, value in own.items() if key not in ("schema", "step", "files", "sha256")}
    checkpoint.save(tmp_path / "other" / "checkpoints", 1, {"ema": {}}, own | {"family": "cgan"})
    checkpoint.save(lacking / "checkpoints", 6, {"optimizer": {}}, own)
    odd = make_run(tmp_path / "odd")
    checkpoint.save(odd / "checkpoints", 6, {"model": {}}, own | {"config": []})
    damaged = make_run(tmp_path / "damaged")
    file = damaged / "checkpoints" / "step-00000005" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text('{"family": "vqvae"}')
    (folder / "model.safetensors").write_bytes(b"no")
    newer = tmp_path / "newer"
    save_tokenizer(load_tokenizer(make_run(tmp_path / "of_now")), newer)
    values = json.loads((newer / "config.json").read_text())
    (newer / "config.json").write_text(json.dumps(values | {"data": values["data"] | {"sparkle": 1}}))
    for path, words in (
        (newer, "data.sparkle, which this version does not know; install the newer t2i that wrote it"),
        (tmp_path / "nowhere", "does not exist; train one: t2i train vqvae"),
        (tmp_path, "neither checkpoints nor config.json"),
        (tmp_path / "empty", "has no checkpoint yet"),
        (tmp_path / "other", "family 'cgan', which is not an image tokenizer"),
        (lacking, "of the family vqvae has no part best or ema or model"),
        (odd, "is not a manifest that this version of t2i can read .config: "),
        (damaged, "no checkpoint in .* is intact, .* bytes"),
        (folder, "is damaged"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            load_tokenizer(path)
        assert "\n" not in str(caught.value)
    tokenizer = load_tokenizer(make_run(tmp_path / "good"))
    with pytest.raises(InputError, match="encodes images of 32x32x3, got 16x16x3"):
        tokenizer.encode(np.zeros((1, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="must be in 0 ... 63"):
        tokenizer.decode(torch.full((1, 64, 1), 64))
    with pytest.raises(ValueError, match="tokens of an image have the shape"):
        tokenizer.decode(torch.zeros(1, 16, 1, dtype=torch.int64))


def test_every_tokenizer_of_the_dict_keeps_the_protocol(tmp_path: Path) -> None:
    assert [name for name, family in FAMILIES.items() if family.tokenizer] == ["vqvae"]
    tokenizer = load_tokenizer(make_run(tmp_path / "run"))
    assert set(tokenizer.components()) == set(tokenizer.parts)
    assert all(hasattr(tokenizer, name) for name in ("grid", "codebooks", "codebook_size", "digest", "to"))
