"""Image encoders: cells of an align run and of folders of transformers, behind one protocol."""

from pathlib import Path

import numpy as np
import pytest
import torch

from builders.tiny_text_models import save_clip_with_images
from t2i.errors import InputError
from t2i.extractors import IMAGE_ENCODERS, SAVED_NAME, load_image_encoder, open_image_encoder
from t2i.images import to_model


def save_resnet(folder: Path) -> Path:
    from transformers import ConvNextImageProcessor, ResNetConfig, ResNetModel

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 32}).save_pretrained(folder)
    return folder


def save_vit(folder: Path) -> Path:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**size, image_size=32, patch_size=8)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


PLACES = {"resnet": save_resnet, "vit": save_vit, "clip": save_clip_with_images}


@pytest.mark.parametrize("name", list(IMAGE_ENCODERS))
def test_cells_follow_the_contract(name: str, tmp_path: Path) -> None:
    place = str(PLACES[name](tmp_path / name)) if name in PLACES else None
    encoder = open_image_encoder(name, place)
    images = np.random.default_rng(0).integers(0, 255, (11, 48, 48, 3)).astype(np.uint8)
    cells, pooled = encoder.encode(images)
    rows, columns = encoder.grid
    assert cells.shape == (11, rows * columns, encoder.cell_dim) and pooled.shape == (11, encoder.pooled_dim)
    assert torch.equal(encoder.encode(images[7:9]).cells_BLD, cells[7:9])  # in any company
    assert encoder.encode(images[:0]).cells_BLD.shape == (0, *cells.shape[1:])
    torch.testing.assert_close(encoder.tower(to_model(images)).cells_BLD, cells, rtol=1e-4, atol=1e-4)
    encoder.save(tmp_path / "saved")
    modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "saved").rglob("*") if file.is_file()}
    assert modes == {(tmp_path / "saved" / SAVED_NAME).stat().st_mode & 0o777} and 0o600 not in modes
    again = load_image_encoder(tmp_path / "saved")
    assert again.digest() == encoder.digest() and torch.equal(again.encode(images).cells_BLD, cells)
    # rows come from the top left: what changes in the last corner changes the last cell most
    painted = images[:1].copy()
    painted[:, 40:, 40:] = 255 - painted[:, 40:, 40:]
    changes = (encoder.encode(painted).cells_BLD - cells[:1]).norm(dim=2)[0]
    assert name == "aligned" and encoder.grid == (4, 4) or int(changes.argmax()) == len(changes) - 1


def test_another_kind_of_folder_is_told_so(tmp_path: Path) -> None:
    save_vit(tmp_path / "vit")
    with pytest.raises(InputError, match="holds a 'vit' model, not resnet"):
        open_image_encoder("resnet", str(tmp_path / "vit"))
    with pytest.raises(InputError, match="is not a dual encoder"):
        open_image_encoder("aligned", str(tmp_path))
    (tmp_path / "encoder.json").write_text("{}")
    with pytest.raises(InputError, match="names no image encoder"):
        load_image_encoder(tmp_path)


def test_classical_cells_follow_gradients_and_colours_by_hand() -> None:
    encoder = open_image_encoder("classical")
    image = np.zeros((1, 64, 64, 3), np.uint8)
    image[:, :, 36:] = (255, 0, 0)  # an upright edge in the fifth column of cells; red to the right
    cells = encoder.encode(image).cells_BLD.reshape(8, 8, -1)[3]
    assert cells[4, 0] > 0.1 and cells[4, 1:9].max() < 1e-5 and cells[[0, 1, 2, 3, 5, 6, 7], :9].max() < 1e-5
    torch.testing.assert_close(cells[7, 9:], torch.tensor([1.0, -1.0, -1.0]))
    turned = encoder.encode(image.transpose(0, 2, 1, 3)).cells_BLD.reshape(8, 8, -1)[4, 3]
    # upright to level is a quarter turn: halfway between the directions 4 and 5 of nine
    torch.testing.assert_close(turned[4:6], cells[4, 0].expand(2) / 2)


def test_classical_features_pass_gradients_and_take_no_path() -> None:
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    open_image_encoder("classical").tower(images).pooled_BP.square().sum().backward()
    assert images.grad is not None and images.grad.isfinite().all() and images.grad.abs().sum() > 0
    with pytest.raises(InputError, match="image.path=x has no effect with image.encoder=classical; remove it"):
        open_image_encoder("classical", "x")
