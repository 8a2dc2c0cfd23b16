"""Augmentation of training images by name."""

from typing import get_args

import numpy as np
import pytest

from t2i.data import Augmentation, DataConfig, View, open_dataset
from t2i.data.augment import COLOURS, MOVES, NOISE, SHARE_GREY, augment, warn_of_contradictions
from t2i.data.loader import Loader, Position

NAMES = get_args(Augmentation)
IDS = np.arange(40)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return open_dataset("shapes-2", "train", View(32, limit=40)).images(range(40))


def test_every_name_is_known():
    assert {*COLOURS, *MOVES, "noise"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_changes_pictures_and_follows_seed_and_sample_alone(pictures, name):
    made = augment(pictures, [name], 0, IDS)
    assert made.dtype == np.uint8 and made.shape == pictures.shape
    assert (made != pictures).any()
    alone = np.concatenate([augment(pictures[[i]], [name], 0, IDS[[i]]) for i in range(40)])
    np.testing.assert_array_equal(made, alone)
    assert (made != augment(pictures, [name], 1, IDS)).any()
    assert (made != augment(pictures, [name], 0, IDS + 40)).any()


def test_no_name_changes_nothing(pictures):
    assert augment(pictures, [], 0, IDS) is pictures


def test_moves_keep_the_background_and_the_level(pictures):
    """The border is repeated, so no black corner enters a rotated image with a plain background."""
    plain = np.full((40, 32, 32, 3), (200, 30, 90), np.uint8)
    np.testing.assert_array_equal(augment(plain, MOVES, 0, IDS), plain)


def test_zoom_enlarges_and_shift_moves():
    dot = np.zeros((200, 33, 33, 3), np.uint8)
    dot[:, 12:21, 12:21] = 255
    area = augment(dot, ["zoom"], 0, np.arange(200)).mean(axis=(1, 2, 3)) / dot[0].mean()
    assert area.min() > 0.97 and 1.3 < area.max() < 1.5  # up to 1.2 x 1.2
    moved = augment(dot, ["shift"], 0, np.arange(200))[..., 0].astype(float)
    columns = (moved.sum(axis=1) * np.arange(33)).sum(axis=1) / moved.sum(axis=(1, 2)) - 16
    assert 2.8 < np.abs(columns).max() < 3.4  # a tenth of 33
    assert abs(columns.mean()) < 0.4


def test_grey_takes_the_colours_from_a_tenth(pictures):
    many = np.repeat(pictures[:1], 1000, axis=0)
    many[:, :4, :4] = (255, 0, 0)
    made = augment(many, ["grey"], 0, np.arange(1000))
    grey = (made[:, 0, 0] == made[:, 0, 0, :1]).all(axis=1)
    assert abs(grey.mean() - SHARE_GREY) < 0.03
    np.testing.assert_array_equal(made[~grey], many[~grey])


def test_noise_has_at_most_its_deviation():
    middle = np.full((200, 16, 16, 3), 128, np.uint8)
    deviation = (augment(middle, ["noise"], 0, np.arange(200)).astype(float) - 128).std(axis=(1, 2, 3))
    assert 0.9 * NOISE < deviation.max() < 1.1 * NOISE and deviation.min() < 1


def test_the_loader_augments_alike_with_workers_and_when_resumed():
    data = open_dataset("shapes-2", "train", View(32, limit=40))
    here, there = (Loader(data, 10, 3, num_workers=workers, augmented=("color", "shift")) for workers in (0, 1))
    batches = [next(here) for _ in range(6)]
    for batch in batches[:3]:
        np.testing.assert_array_equal(batch.images_BHWC.numpy(), next(there).images_BHWC.numpy())
    resumed = next(Loader(data, 10, 3, position=Position(50), augmented=("color", "shift")))
    np.testing.assert_array_equal(resumed.images_BHWC.numpy(), batches[5].images_BHWC.numpy())
    plain = next(Loader(data, 10, 3))
    assert (plain.images_BHWC.numpy() != batches[0].images_BHWC.numpy()).any()


def test_changing_colours_that_captions_name_causes_a_warning():
    data = open_dataset("shapes-2", "train", View(32, limit=40))
    with pytest.warns(UserWarning, match=r"data.augment color changes the colours that captions of shapes-2 name"):
        warn_of_contradictions(DataConfig(augment=("zoom", "color")), data)


@pytest.mark.filterwarnings("error")
def test_moving_images_does_not_cause_a_warning_about_colours():
    warn_of_contradictions(DataConfig(augment=("zoom", "noise")), open_dataset("shapes-2", "train", View(32, limit=40)))
