"""Sampling from a cvae: an image depends on its seed and caption alone, and a pipeline on its folder alone."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from builders.tiny_cvae_run import make_cvae_run
from builders.tiny_prior_run import save_random_tokenizer
from builders.tiny_run import CAPTIONS
from t2i.errors import InputError
from t2i.pipeline import TextToImagePipeline


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cvae_run(tmp_path_factory.mktemp("runs") / "cvae")


@pytest.fixture(scope="module")
def pipe(run: Path) -> TextToImagePipeline:
    return TextToImagePipeline.from_pretrained(run)


def sample(pipe: TextToImagePipeline, *arguments, **options) -> np.ndarray:
    return pipe(*arguments, output_type="np", **options).images


def test_an_image_has_the_same_bits_at_every_batch_size_and_in_any_company(pipe) -> None:
    every = sample(pipe, CAPTIONS, 3, seed=5, batch_size=32)
    assert len(np.unique(every.reshape(15, -1), axis=0)) == 15
    for batch_size in (1, 4, 7):
        assert np.array_equal(sample(pipe, CAPTIONS, 3, seed=5, batch_size=batch_size), every)
    assert np.array_equal(sample(pipe, CAPTIONS[2], 2, seed=5), every[6:8])
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert np.array_equal(sample(pipe, CAPTIONS, 3, seed=5), every)
    finally:
        torch.set_num_threads(threads)


def test_without_noise_every_seed_gives_the_image_of_the_caption(pipe) -> None:
    images = sample(pipe, CAPTIONS[1], 4, seed=1, truncation=0.0)
    assert (images == images[0]).all()
    assert not np.array_equal(images[0], sample(pipe, CAPTIONS[2], 1, seed=1, truncation=0.0)[0])


def test_noise_and_captions_have_a_path_between_them(pipe) -> None:
    row = pipe.interpolate_noise(CAPTIONS[1], (3, 4), 5, output_type="np").images
    assert np.array_equal(row[0], sample(pipe, CAPTIONS[1], seed=[3])[0])
    assert np.array_equal(row[-1], sample(pipe, CAPTIONS[1], seed=[4])[0])
    row = pipe.interpolate_captions(CAPTIONS[1], CAPTIONS[2], 5, seed=3, output_type="np").images
    assert len(row) == 5 and not np.array_equal(row[0], row[-1])


@pytest.mark.parametrize(
    ("options", "says"),
    [({"guidance_scale": 2.0}, "its only setting is truncation"), ({"temperature": 0.4}, "temperature")],
)
def test_settings_of_other_families_are_refused(pipe, options, says) -> None:
    with pytest.raises(InputError, match=says):
        pipe(CAPTIONS[0], **options)


def test_the_callback_hears_every_image(pipe) -> None:
    heard: list[float] = []
    pipe(CAPTIONS, 1, seed=0, callback_on_step_end=lambda _, __, done, ___: heard.append(done))
    assert heard == sorted(heard) and heard[-1] == 1 and len(heard) >= len(CAPTIONS)


@pytest.mark.parametrize("kind", ["vector", "scalar", "simvq"])
def test_a_saved_pipeline_makes_what_its_run_made(kind: str, tmp_path: Path) -> None:
    pipe = TextToImagePipeline.from_pretrained(make_cvae_run(tmp_path / "run", kind))
    pipe.save_pretrained(tmp_path / "saved", prompts=[])
    again = TextToImagePipeline.from_pretrained(tmp_path / "saved")
    assert np.array_equal(sample(again, CAPTIONS, 2, seed=3), sample(pipe, CAPTIONS, 2, seed=3))


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    run = make_cvae_run(tmp_path / "run")
    shutil.rmtree(run / "tokenizer")
    with pytest.raises(InputError, match="is missing"):
        TextToImagePipeline.from_pretrained(run)
    save_random_tokenizer(run / "tokenizer", seed=1)
    with pytest.raises(InputError, match="another tokenizer"):
        TextToImagePipeline.from_pretrained(run)


def test_real_images_through_the_tokenizer_are_the_ceiling(pipe) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    tokenizer = pipe.sampler.tokenizer
    assert np.array_equal(pipe.sampler.reconstruct(images), tokenizer.decode(tokenizer.encode(images)))
