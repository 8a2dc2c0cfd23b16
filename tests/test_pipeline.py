"""The pipeline: an image depends on (seed, prompt, k) alone, and a pipeline on its folder alone."""

import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

from builders.tiny_run import CAPTIONS, STEP, make_run, tiny_config
from t2i import checkpoint
from t2i.cgan.architectures import build
from t2i.cgan.sampling import sample
from t2i.errors import InputError
from t2i.images import to_uint8
from t2i.metrics.score import Score, ScoreProtocol, write_scores
from t2i.pipeline import TextToImagePipeline, mix
from t2i.sampling.prompts import image_seed
from t2i.seeding import noise, slerp
from t2i.text import TextConfig, TextFeatures, fit_encoder, load_encoder

PROMPT = "a small red circle"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "tiny", generator={"cross_attention": True})


@pytest.fixture(scope="module")
def pipe(run: Path) -> TextToImagePipeline:
    return TextToImagePipeline.from_pretrained(run)


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """Copies a run to damage."""
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture
def saved(pipe: TextToImagePipeline, tmp_path: Path) -> Path:
    """Copies a saved pipeline to damage."""
    pipe.save_pretrained(tmp_path / "saved", prompts=[])
    return tmp_path / "saved"


def sampled(pipe: TextToImagePipeline, *arguments, **options) -> np.ndarray:
    return pipe(*arguments, output_type="uint8", **options).images


def refused(place: Path | str, *words: str) -> None:
    """Checks that loading fails with one line that contains these words."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError) as error:
            TextToImagePipeline.from_pretrained(place)
    message = str(error.value)
    assert "\n" not in message and len(message) < 500
    assert all(word in message for word in words), message


# ---- sampling ------------------------------------------------------------------------------------------------------


def test_the_kinds_of_output_show_the_same_images(pipe):
    pil, levels, shares, tensor = (
        pipe(PROMPT, 2, seed=3, output_type=kind).images for kind in ("pil", "uint8", "np", "pt")
    )
    assert levels.shape == (2, 32, 32, 3) and levels.dtype == np.uint8 and levels.std() > 10
    assert [image.size for image in pil] == [(32, 32)] * 2
    assert np.array_equal(np.stack([np.asarray(image) for image in pil]), levels)
    # as diffusers has them: floats that callers multiply by 255
    assert shares.dtype == np.float32 and 0 <= shares.min() < 0.2 and 0.7 < shares.max() <= 1
    assert np.array_equal((shares * 255).round().astype(np.uint8), levels)
    assert tensor.shape == (2, 3, 32, 32) and tensor.dtype == torch.float32
    assert np.array_equal(tensor.permute(0, 2, 3, 1).numpy(), shares)
    (alone,) = pipe(PROMPT, 2, seed=3, output_type="uint8", return_dict=False)
    assert np.array_equal(alone, levels)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"generator": {"cross_attention": True}},
        {"data": {"resolution": 64}, "generator": {"width": 16}},
        {"generator": {"w_dim": 27}},  # matrix products whose rows round by where they stand
    ],
    ids=str,
)
@pytest.mark.parametrize("knobs", [{}, {"truncation": 0.6, "guidance_scale": 1.7}])
def test_a_picture_has_the_same_bits_at_every_batch_size_and_in_any_company(tmp_path, changes, knobs):
    pipe = TextToImagePipeline.from_pretrained(make_run(tmp_path, **changes))
    every = sampled(pipe, CAPTIONS, 3, seed=5, batch_size=32, **knobs)
    assert len(np.unique(every.reshape(15, -1), axis=0)) == 15
    assert 20 < every.std() and np.isin(every, (0, 255)).mean() < 0.5  # clipped values would hide a difference
    for batch_size in (1, 4, 7, 8):
        assert np.array_equal(sampled(pipe, CAPTIONS, 3, seed=5, batch_size=batch_size, **knobs), every)
    turned = sampled(pipe, CAPTIONS[::-1], 3, seed=5, **knobs)
    assert np.array_equal(turned.reshape(5, 3, *every.shape[1:])[::-1].reshape(every.shape), every)
    assert np.array_equal(sampled(pipe, CAPTIONS[2], 2, seed=5, **knobs), every[6:8])
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert np.array_equal(sampled(pipe, CAPTIONS, 3, seed=5, **knobs), every)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_a_seed_decides_the_picture(pipe):
    output = pipe(CAPTIONS, 2, seed=1, output_type="uint8")
    assert len(set(output.seeds)) == 10 and output.seeds[3] == image_seed(1, CAPTIONS[1], 1)
    assert np.array_equal(sampled(pipe, CAPTIONS, 2, seed=1), output.images)
    assert (sampled(pipe, CAPTIONS, 2, seed=2) != output.images).any(axis=(1, 2, 3)).all()
    assert np.array_equal(sampled(pipe, CAPTIONS[1], seed=[output.seeds[3]]), output.images[3:4])
    assert np.array_equal(sampled(pipe, CAPTIONS, 2, seed=np.array(output.seeds)), output.images)
    # cleaned as captions are, so white space is no other prompt
    assert np.array_equal(sampled(pipe, f"  {CAPTIONS[1].replace(' ', '  ')}\n", 2, seed=1), output.images[2:4])
    one_noise = sampled(pipe, CAPTIONS[:2], seed=[7, 7])
    assert (one_noise[0] != one_noise[1]).any()


def test_without_a_seed_pictures_are_fresh_and_can_be_drawn_again(pipe):
    first, second = (pipe(PROMPT, 2, output_type="uint8") for _ in range(2))
    assert (first.images != second.images).any(axis=(1, 2, 3)).all()
    assert np.array_equal(sampled(pipe, PROMPT, 2, seed=first.seeds), first.images)


def test_generators_give_one_seed_a_picture(pipe):
    def generators(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    three = sampled(pipe, PROMPT, 3, generator=generators(1, 2, 3))
    for batch_size in (1, 2):
        assert np.array_equal(sampled(pipe, PROMPT, 3, generator=generators(1, 2, 3), batch_size=batch_size), three)
    assert np.array_equal(sampled(pipe, PROMPT, generator=generators(2)), three[1:2])
    (single,) = generators(1)
    two = sampled(pipe, PROMPT, 2, generator=single)
    assert np.array_equal(two[0], three[0]) and (two[1] != three[1]).any()
    assert (sampled(pipe, PROMPT, 2, generator=single) != two).any()  # it goes on


def test_drawing_and_loading_leave_the_callers_random_numbers_alone(run):
    before = torch.get_rng_state()
    sampled(TextToImagePipeline.from_pretrained(run), PROMPT)
    assert torch.equal(torch.get_rng_state(), before)


def test_truncation_and_guidance(pipe):
    plain = sampled(pipe, PROMPT, 4, seed=0)
    assert np.array_equal(sampled(pipe, PROMPT, 4, seed=0, truncation=1.0, guidance_scale=1.0), plain)
    spread = [sampled(pipe, PROMPT, 4, seed=0, truncation=t).astype(float).std(axis=0).mean() for t in (0, 0.5, 1)]
    assert spread[0] == 0 and spread[0] < spread[1] < spread[2]
    guided = sampled(pipe, PROMPT, 4, seed=0, guidance_scale=2)
    assert (guided != plain).any(axis=(1, 2, 3)).all()
    pipe.guidance_scale = 2
    try:
        assert np.array_equal(sampled(pipe, PROMPT, 4, seed=0), guided)
        assert np.array_equal(sampled(pipe, PROMPT, 4, seed=0, guidance_scale=1), plain)
    finally:
        pipe.guidance_scale = 1.0


def test_guidance_needs_the_mean_latent(run):
    pipe = TextToImagePipeline.from_pretrained(run)
    pipe.sampler.generator.w_average.zero_()
    sampled(pipe, PROMPT)
    with pytest.raises(InputError, match="guidance 1.5 needs the mean latent"):
        pipe(PROMPT, guidance_scale=1.5)


def test_the_pictures_are_those_of_the_averaged_generator(run, pipe):
    state, manifest = checkpoint.load(run / "checkpoints" / f"step-{STEP:08d}")
    encoder = load_encoder(run / "text")
    generator, _ = build(tiny_config(generator={"cross_attention": True}), encoder.pooled_dim, encoder.token_dim)
    generator.load_state_dict(state["ema"])
    seeds = list(range(8))
    text = encoder.encode((CAPTIONS * 2)[:8])
    expected = to_uint8(sample(generator.eval(), noise(seeds, 8), text, truncation=0.8)).astype(int)
    apart = np.abs(sampled(pipe, (CAPTIONS * 2)[:8], seed=seeds, truncation=0.8) - expected)
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-3  # it drew all in one batch, which rounds differently
    assert pipe.manifest == manifest and pipe.family == "cgan" and pipe.run == run


def test_the_callback_hears_how_far_it_is(pipe):
    heard: list[tuple[int, float, int]] = []

    def listen(who, step, done, info):
        assert who is pipe
        heard.append((step, done, len(info["seeds"])))

    output = pipe(CAPTIONS, 4, seed=0, batch_size=12, callback_on_step_end=listen)
    assert [step for step, _, _ in heard] == list(range(20)) and len(output.images) == 20
    assert [done for _, done, _ in heard] == pytest.approx([k / 20 for k in range(1, 21)])
    assert [size for _, _, size in heard] == [12] * 12 + [8] * 8


def test_a_callback_may_stop_it(pipe):
    def stop(*_):
        raise KeyboardInterrupt

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            pipe(PROMPT, 50, callback_on_step_end=stop)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.timeout(60)
def test_a_callback_may_sample_itself(pipe):
    inner: list[np.ndarray] = []

    def again(who, step, *_):
        if step < 2:
            inner.append(sampled(who, CAPTIONS[1], seed=5))

    outer = sampled(pipe, PROMPT, 6, seed=3, callback_on_step_end=again)
    assert np.array_equal(outer, sampled(pipe, PROMPT, 6, seed=3))
    assert len(inner) == 2 and np.array_equal(inner[0], sampled(pipe, CAPTIONS[1], seed=5))


def test_a_call_in_a_callback_keeps_the_interrupt_of_the_outer_call(pipe):
    def stop_and_sample(who, step, *_):
        if step == 1:
            who._interrupt = True
            assert len(who(CAPTIONS[1], 3, seed=5, batch_size=1).images) == 3

    assert len(pipe(PROMPT, 6, seed=3, batch_size=1, callback_on_step_end=stop_and_sample).images) == 2
    assert len(pipe(PROMPT, 6, seed=3, batch_size=1).images) == 6


@pytest.mark.parametrize("kind", ["pil", "np", "pt", "uint8"])
def test_interrupt_ends_a_call_with_the_batches_that_are_whole(pipe, kind):
    def stop_at(last):
        def hear(who, step, done, info):
            heard.append(step)
            who._interrupt = step == last

        return hear

    for last, whole in ((0, 0), (5, 4), (7, 8)):
        heard: list[int] = []
        output = pipe(PROMPT, 20, seed=3, batch_size=4, output_type=kind, callback_on_step_end=stop_at(last))
        assert len(output.images) == len(output.seeds) == whole and heard == list(range(last + 1))
    assert len(pipe(PROMPT, 20, seed=3, batch_size=4).images) == 20  # the next call starts afresh
    for last, whole in ((0, 0), (5, 1), (11, 4)):
        output = pipe(PROMPT, 8, seed=3, batch_size=4, output_type=kind, best_of=3, callback_on_step_end=stop_at(last))
        assert len(output.images) == len(output.seeds) == len(output.scores) == whole


def test_the_seed_of_an_image_makes_it_again(pipe):
    every = pipe(CAPTIONS, 3, seed=5, output_type="uint8")
    for place in range(15):
        prompt, seed = CAPTIONS[place // 3], every.seeds[place]
        for given in (seed, [seed], np.uint64(seed)):
            output = pipe(prompt, seed=given, output_type="uint8")
            assert output.seeds == [seed] and np.array_equal(output.images[0], every.images[place])
    several = pipe(CAPTIONS[0], 3, seed=every.seeds[1], output_type="uint8")
    assert np.array_equal(several.images[0], every.images[1]) and len(set(several.seeds)) == 3


@pytest.mark.parametrize(
    ("prompt", "options", "says"),
    [
        ("", {}, "the prompt '' is empty"),
        (" \u200b\n", {}, "is empty"),
        ([PROMPT, ""], {}, "is empty"),
        ("x" * 10_000, {}, "has 10,000 characters; shorten it to at most 4,096"),
        (7, {}, "a prompt must be text or a list of texts, got 7"),
        (None, {}, "a prompt must be text or a list of texts, got None"),
        (b"red", {}, "a prompt must be text or a list of texts, got b'red'"),
        ({PROMPT: 1}, {}, "a prompt must be text or a list of texts, got {"),
        (iter([PROMPT]), {}, "a prompt must be text or a list of texts, got <list_iterator"),
        ([7], {}, "a prompt must be text, got int 7"),
        ([PROMPT, None], {}, "a prompt must be text, got NoneType None"),
        ([], {}, "prompts must be 1 or more, got 0"),
        (PROMPT, {"num_images_per_prompt": "2"}, "num_images_per_prompt must be a whole number, got '2'"),
        (PROMPT, {"num_images_per_prompt": 2.0}, "num_images_per_prompt must be a whole number, got 2.0"),
        (PROMPT, {"num_images_per_prompt": None}, "num_images_per_prompt must be a whole number, got None"),
        (PROMPT, {"batch_size": "8"}, "batch_size must be a whole number, got '8'"),
        (PROMPT, {"best_of": True}, "best_of must be a whole number, got True"),
        (PROMPT, {"seed": "42"}, "seed must be a whole number or a list of them, got '42'"),
        (PROMPT, {"seed": 4.5}, "seed must be a whole number or a list of them, got 4.5"),
        (PROMPT, {"seed": True}, "seed must be a whole number or a list of them, got True"),
        (PROMPT, {"seed": b"4"}, "seed must be a whole number or a list of them, got b'4'"),
        (PROMPT, {"seed": {4}}, "seed must be a whole number or a list of them, got .4."),
        (PROMPT, {"seed": ["4"]}, "a seed must be a whole number from 0 to .* - 1, got '4'"),
        (PROMPT, {"seed": -1}, "a seed must be a whole number from 0 to .* - 1, got -1"),
        (PROMPT, {"seed": 2**63}, "a seed must be a whole number from 0 to .* - 1, got 9223372036854775808"),
        (PROMPT, {"seed": [2**64 + 5]}, "a seed must be a whole number from 0 to"),
        (PROMPT, {"seed": torch.tensor([1, 2])}, "got 2 seeds for 1 image"),
        (PROMPT, {"scorer": "clip:x"}, "scorer chooses among candidates, and there is only one; set best_of"),
        (PROMPT, {"timesteps": [1]}, "does not take timesteps=.1.: there is no diffusion process"),
        (PROMPT, {"prompt_2": "red"}, "does not take prompt_2='red': pass the prompt as text"),
        (PROMPT, {"generator": 3}, "generator must be a torch.Generator or a list of them, got 3; a number is a seed"),
        (
            PROMPT,
            {"generator": [3]},
            "generator must be a torch.Generator or a list of them, got 3; a number is a seed",
        ),
        (PROMPT, {"generator": "cpu"}, "generator must be a torch.Generator or a list of them, got 'cpu'"),
        (PROMPT, {"guidance_scale": "2"}, "guidance must be a number from 0 on, got '2'"),
        (PROMPT, {"truncation": [1]}, r"truncation must be a number from 0 on, got \[1\]"),
        (PROMPT, {"callback_on_step_end": 1}, "callback_on_step_end must be a function, got 1"),
        (
            PROMPT,
            {"num_inference_steps": 50},
            "does not take num_inference_steps=50: a GAN has no steps, a prior takes",
        ),
        (PROMPT, {"negative_prompt": "blurry"}, "does not take negative_prompt='blurry'"),
        (PROMPT, {"height": 512}, "height 512: this model makes images of 32 x 32 pixels only"),
        (PROMPT, {"image": 1}, "the argument is init_image"),
        (PROMPT, {"output_type": "latent"}, "output_type 'latent' is unknown; valid ones: pil, np, pt, uint8"),
        (PROMPT, {"output_type": None}, "output_type None is unknown"),
        (PROMPT, {"num_images_per_prompt": 0}, "num_images_per_prompt must be 1 or more, got 0"),
        (PROMPT, {"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        (PROMPT, {"seed": [1, 2]}, "got 2 seeds for 1 image"),
        (PROMPT, {"generator": [torch.Generator()] * 3}, "got 3 generators for 1 image"),
        (PROMPT, {"seed": 1, "generator": torch.Generator()}, "pass seed or generator, not both"),
        (PROMPT, {"guidance_scale": float("nan")}, "guidance must be a number from 0 on, got nan"),
        (PROMPT, {"truncation": -1.0}, "truncation must be a number from 0 on, got -1.0"),
    ],
)
def test_wrong_calls(pipe, prompt, options, says, monkeypatch):
    def work(*_):
        raise AssertionError("it is noticed before any work")

    monkeypatch.setattr(type(pipe.sampler), "sample", work)
    with pytest.raises(InputError, match=says) as error:
        pipe(prompt, **options)
    assert "\n" not in str(error.value)


def test_arguments_of_diffusers_that_change_nothing_work(pipe):
    plain = sampled(pipe, PROMPT, seed=1)
    idle = {
        "height": 32, "width": 32, "num_inference_steps": None, "negative_prompt": "", "eta": 0.0, "latents": None,
        "prompt_embeds": None, "clip_skip": None, "guidance_rescale": 0.0, "callback_on_step_end_tensor_inputs": ["latents"],
        "timesteps": None, "sigmas": None, "ip_adapter_image": None, "callback": None, "callback_steps": 1, "prompt_2": None,
    }  # fmt: skip
    assert np.array_equal(sampled(pipe, PROMPT, seed=np.int64(1), num_images_per_prompt=np.int32(1), **idle), plain)
    assert np.array_equal(sampled(pipe, (PROMPT,), seed=1), plain)
    assert np.array_equal(sampled(pipe, np.array([PROMPT]), seed=torch.tensor(1)), plain)
    output = pipe(PROMPT, seed=1)
    assert output[0] is output.images and output["images"] is output.images and output.to_tuple()[0] is output.images
    images, seeds = output
    assert images is output.images and seeds == output.seeds


@pytest.mark.parametrize(
    "options",
    [
        {"torch_dtype": torch.float32}, {"torch_dtype": "auto"}, {"dtype": None}, {"use_safetensors": True},
        {"variant": None}, {"local_files_only": True, "cache_dir": "/tmp/x", "revision": "main", "token": None},
        {"safety_checker": None, "requires_safety_checker": False}, {"low_cpu_mem_usage": True}, {"device_map": None},
        {"proxies": None, "max_memory": None, "offload_folder": None, "quantization_config": None, "disable_mmap": False},
    ],
    ids=str,
)  # fmt: skip
def test_loading_options_that_change_nothing_work(run, pipe, options):
    again = TextToImagePipeline.from_pretrained(run, **options)
    assert np.array_equal(sampled(again, PROMPT, seed=1), sampled(pipe, PROMPT, seed=1))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"torch_dtype": torch.float16}, "does not take torch_dtype=torch.float16: models compute in float32"),
        ({"torch_dtype": "bfloat16"}, "does not take torch_dtype='bfloat16'"),
        ({"variant": "fp16"}, "does not take variant='fp16': a pipeline has one set of weights"),
        ({"use_safetensors": False}, "does not take use_safetensors=False: only safetensors files are read"),
        ({"use_safetensors": 1}, "does not take use_safetensors=1"),
        ({"trust_remote_code": True}, "code that comes with a model never runs"),
        ({"custom_pipeline": "x"}, "code that comes with a model never runs"),
        ({"device_map": "auto"}, "pass device instead"),
        ({"safety_checker": object()}, "does not take safety_checker="),
        ({"sheduler": 1}, "from_pretrained has no argument 'sheduler'; it takes device, subfolder, cache_dir"),
        ({"subfolder": "../run"}, "leads out of"),
        ({"subfolder": "/etc"}, "leads out of"),
        ({"subfolder": 3}, "subfolder must be a folder's name, got 3"),
        ({"subfolder": "unet"}, "unet does not exist"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"device": 3.5}, "device '3.5' cannot be used"),
        ({"device": "meta"}, "device 'meta' cannot be used .it holds no values"),
        ({"proxies": {"https": "x"}}, "does not take proxies="),
    ],
)
def test_loading_options_that_ask_for_what_there_is_not(run, options, says):
    with pytest.raises(InputError, match=says) as error:
        TextToImagePipeline.from_pretrained(run, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["CGAN", "./cgan", "cgan/", "weights/Cgan"])
def test_another_spelling_of_a_shipped_name_is_told(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    with pytest.raises(InputError, match=r"does not exist; .*; cgan, without a path and in lower case, is the model"):
        TextToImagePipeline.from_pretrained(place)


@pytest.mark.parametrize("place", [None, "", 7])
def test_no_place_to_save(pipe, place):
    with pytest.raises(InputError, match="save_pretrained needs the name of a new or an empty folder, got"):
        pipe.save_pretrained(place)


@pytest.mark.parametrize("place", [None, "", 7, b"runs"])
def test_no_place_at_all(place):
    with pytest.raises(InputError, match="no pipeline at"):
        TextToImagePipeline.from_pretrained(place)


def test_a_subfolder_holds_the_pipeline(pipe, run):
    again = TextToImagePipeline.from_pretrained(run.parent, subfolder=run.name)
    assert np.array_equal(sampled(again, PROMPT, seed=1), sampled(pipe, PROMPT, seed=1))


def test_the_rest_of_the_face(pipe, run, tmp_path):
    assert (
        pipe.to("cpu", torch.float32) is pipe.to(torch.float32) is pipe.to(device="cpu") is pipe.to(dtype=torch.float32)
    )
    for places in ((torch.float16,), ("cpu", torch.bfloat16)):
        with pytest.raises(InputError, match="does not take dtype=torch.*: models compute in float32"):
            pipe.to(*places)
    assert pipe.dtype == torch.float32 and pipe.device == torch.device("cpu")
    assert pipe.components == {"text_encoder": pipe.text_encoder, "generator": pipe.sampler.generator}
    pipe.set_progress_bar_config(disable=True)
    shown = repr(pipe)
    for words in (
        "TextToImagePipeline(conditional GAN, 32 x 32 pixels",
        "text encoder bow",
        f"step {STEP} of",
        "on cpu)",
    ):
        assert words in shown
    assert "\n" not in shown and len(shown) < 300
    for options, says in (
        ({"safe_serialization": False}, "only safetensors files are written"),
        ({"push_to_hub": True}, r"call pipe.push_to_hub\(repo_id\) instead"),
        ({"max_shard_size": "1GB"}, "each component is one file"),
        ({"varant": None}, "save_pretrained has no argument 'varant'"),
        ({"dtype": torch.int8}, "dtype must be torch.float32, torch.bfloat16 or torch.float16, got torch.int8"),
        ({"dtype": "float16"}, "dtype must be .* got 'float16'"),
    ):
        with pytest.raises(InputError, match=says):
            pipe.save_pretrained(tmp_path / "refused", **options)
    pipe.save_pretrained(tmp_path / "saved", prompts=[], safe_serialization=True, push_to_hub=False, variant=None)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_an_unknown_device(pipe):
    with pytest.raises(InputError, match="device 'nonsense' cannot be used") as error:
        pipe.to("nonsense")
    assert "\n" not in str(error.value)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device 'cuda' cannot be used"):
            pipe.to("cuda")
    assert pipe.to("cpu") is pipe and pipe.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("model", "prompt", "says"),
    [
        ("cgan", "a cat", "this model knows rendered shapes; 'cat' is not among its words"),
        ("cgan", ["a red circle", "a cat on a mat"], "'cat', 'mat' are not among its words"),
        ("cgan", "two circles", "'two', 'circles' are not among its words"),
        ("cgan", "ein roter Kreis", "'ein', 'roter', 'kreis' are"),
        ("cgan", "\u732b", "'\u732b' is not"),
        ("cgan", "one two three four dogs", "'one', 'two', 'three' and 2 more are not"),
        ("cgan", "A SMALL RED CIRCLE, above a large-ish star!", "'ish' is not among"),
        ("bow", "a tiny red dog", "'dog' is not among its words"),
        ("bow", "a purple rectangle", "'rectangle' is not among its words"),
        ("cgan", "a small red star left of a large green ring", None),
        ("cgan", "a yellow heart below a cyan cross, on a grey background", None),
        ("bow", "one tiny orange triangle", None),
    ],
)
def test_words_that_a_model_has_never_seen_are_named_once(pipe, model, prompt, says):
    own = (
        TextToImagePipeline.from_pretrained(model)
        if model == "cgan"
        else TextToImagePipeline(pipe.sampler, pipe._stored)
    )
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        own(prompt, seed=0)
        own(prompt, seed=1)
    assert [str(warning.message) for warning in heard] == ([] if says is None else [str(heard[0].message)])
    assert says is None or says in str(heard[0].message)


# ---- interpolation -------------------------------------------------------------------------------------------------


def test_noise_interpolation_goes_from_picture_to_picture(pipe):
    pair = pipe(PROMPT, 2, seed=4, output_type="uint8")
    output = pipe.interpolate_noise(PROMPT, pair.seeds, frames=6, output_type="uint8")
    row = output.images
    assert len(row) == 6 and output.seeds == pair.seeds
    assert np.array_equal(row[0], pair.images[0]) and np.array_equal(row[-1], pair.images[1])
    steps = np.abs(np.diff(row.astype(float), axis=0)).mean(axis=(1, 2, 3))
    whole = np.abs(row[0].astype(float) - row[-1]).mean()
    assert 0 < steps.min() and steps.max() < whole  # no jump


def test_the_great_circle_keeps_the_length():
    a, b = noise([1, 2], 64)
    a, b = a / a.norm(), b / b.norm()
    way = slerp(a, b, [0, 0.25, 0.5, 0.75, 1])
    assert torch.equal(way[0], a) and torch.equal(way[-1], b)
    torch.testing.assert_close(way.norm(dim=1), torch.ones(5))
    angles = torch.arccos((way[1:] * way[:-1]).sum(dim=1))
    torch.testing.assert_close(angles, angles[:1].expand(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(slerp(a, a, [0, 0.3, 1]), a.expand(3, -1))


def test_caption_interpolation_goes_from_caption_to_caption(pipe):
    a, b = CAPTIONS[0], CAPTIONS[2]
    row = pipe.interpolate_captions(a, b, frames=5, seed=9, output_type="uint8").images
    ends = sampled(pipe, [a, b], seed=[9, 9])
    assert np.array_equal(row[0], ends[0]) and np.array_equal(row[-1], ends[1])
    assert len(np.unique(row.reshape(5, -1), axis=0)) == 5
    with pytest.raises(InputError, match="frames must be 2 or more"):
        pipe.interpolate_captions(a, b, frames=1)


def test_mixed_captions_read_the_tokens_of_both():
    tokens = torch.ones(2, 3, 2)
    tokens[1] *= 3
    mask = torch.tensor([[True, True, False], [True, False, False]])
    mixed = mix(TextFeatures(tokens, mask, torch.tensor([[0.0], [4.0]])), [0.0, 0.25, 1.0])
    assert mixed.mask_BT.tolist() == [[True, True, False], [True, True, False], [True, False, False]]
    assert mixed.tokens_BTD[:, :, 0].tolist() == [[1, 1, 0], [1.5, 0.75, 0], [3, 0, 0]]  # padding counts as zero
    assert mixed.pooled_BP[:, 0].tolist() == [0, 1, 4]


def test_a_family_without_a_noise_space_says_so(run):
    pipe = TextToImagePipeline.from_pretrained(run)
    pipe.sampler = SimpleNamespace(sample=pipe.sampler.sample)
    with pytest.raises(InputError, match="a cgan has no path between two noises; interpolate captions"):
        pipe.interpolate_noise(PROMPT, (1, 2))


# ---- a run ---------------------------------------------------------------------------------------------------------


def test_folders_that_are_no_run(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "config.yaml").write_text("family: cgan")
    refused(tmp_path / "missing", "missing does not exist", "run directory")
    refused(tmp_path / "empty", "empty is not a run directory")
    refused(tmp_path / "file", "file is a file")
    refused(tmp_path / "young", "has no checkpoint yet")


def test_the_newest_intact_checkpoint_is_used(copy):
    make_run(copy, step=STEP + 1, seed=1, generator={"cross_attention": True})
    assert TextToImagePipeline.from_pretrained(copy).manifest["step"] == STEP + 1
    flip_a_bit(copy / "checkpoints" / f"step-{STEP + 1:08d}" / "ema.safetensors")
    with pytest.warns(UserWarning, match="is damaged and skipped"):
        assert TextToImagePipeline.from_pretrained(copy).manifest["step"] == STEP
    flip_a_bit(copy / "checkpoints" / f"step-{STEP:08d}" / "ema.safetensors")
    refused(copy, "no checkpoint in", "is intact", "sha256")


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def rewrite_checkpoint(run: Path, parts: tuple[str, ...] = ("ema",), **changes) -> None:
    """Writes the run's checkpoint with another manifest: intact, but of something else."""
    path = run / "checkpoints" / f"step-{STEP:08d}"
    state, manifest = checkpoint.load(path)
    shutil.rmtree(path)
    own = {key: value for key, value in manifest.items() if key not in ("schema", "step", "files", "sha256")}
    checkpoint.save(path.parent, STEP, {name: state["ema"] for name in parts}, own | changes)


def test_checkpoints_that_draw_nothing(copy):
    rewrite_checkpoint(copy, family="align")
    refused(copy, "family 'align', which does not generate images", "cgan, cvae, prior")
    rewrite_checkpoint(copy, family="cgan", config={**tiny_config().model_dump(mode="json"), "family": "vqvae"})
    refused(copy, "a config that this version of t2i cannot read: family")
    rewrite_checkpoint(copy, config=tiny_config(generator={"width": 16}).model_dump(mode="json"))
    refused(copy, "checkpoint of another model")
    rewrite_checkpoint(copy, parts=("ema_of_old",))
    refused(copy, "of the family cgan has no part best or ema or model")


def test_the_text_encoder_must_be_the_runs_own(copy):
    fit_encoder(TextConfig(encoder="bow"), ["other words"]).save(copy / "text")
    refused(copy, "holds another text encoder than the generator was trained with")
    (copy / "text" / "encoder.json").write_text("{")
    refused(copy, "encoder.json is not a saved text encoder")
    shutil.rmtree(copy / "text")
    refused(copy, "no text encoder at")


def test_a_damaged_file_of_an_encoder_is_one_line(copy, monkeypatch):
    def load(folder):
        raise safetensors.SafetensorError("invalid\nheader")

    monkeypatch.setattr("t2i.sampling.saved.load_encoder", load)
    refused(copy, "the text encoder in", "is damaged: SafetensorError: invalid header")


# ---- saving --------------------------------------------------------------------------------------------------------


def test_a_saved_pipeline_draws_the_same_pictures(pipe, tmp_path):
    before = sampled(pipe, CAPTIONS, 2, seed=3)
    pipe.save_pretrained(tmp_path / "a")
    shutil.move(tmp_path / "a", tmp_path / "elsewhere")  # nothing points outside
    again = TextToImagePipeline.from_pretrained(str(tmp_path / "elsewhere"))
    assert np.array_equal(sampled(again, CAPTIONS, 2, seed=3), before)
    assert again.manifest == pipe.manifest and again.run is None
    again.guidance_scale, again.truncation = 1.5, 0.5
    again.save_pretrained(tmp_path / "b")
    third = TextToImagePipeline.from_pretrained(tmp_path / "b")
    assert np.array_equal(
        sampled(third, CAPTIONS, seed=3), sampled(pipe, CAPTIONS, seed=3, guidance_scale=1.5, truncation=0.5)
    )
    weights = [tmp_path / name / "generator" / "model.safetensors" for name in ("elsewhere", "b")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    files = {str(path.relative_to(tmp_path / "b")) for path in (tmp_path / "b").rglob("*") if path.is_file()}
    assert files == {
        "model_index.json", "README.md", "grid.png", "generator/config.json", "generator/model.safetensors",
        "text_encoder/encoder.json",
    }  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "elsewhere"]


def test_the_model_card(copy, tmp_path):
    protocol = ScoreProtocol(
        metric="faithfulness-strict", metric_version=1, extractor=None, extractor_digest=None, n_real=9, n_fake=9,
        data="folder:/home/somebody/pictures", data_digest="d", split="val", captions="first", resize=None,
        resolution=32, seed=0,
    )  # fmt: skip
    (copy / "trained_on.safetensors").write_bytes(b"hashes")
    (copy / "scores-linked.json").symlink_to("/etc/hostname")
    write_scores(copy / "scores-val.json", [Score(0.4375, protocol, (0.4, 0.5), "wilson", {"real": 0.99})])
    (copy / "scores-odd.json").write_text("{}")
    pipe = TextToImagePipeline.from_pretrained(copy)
    pipe.save_pretrained(tmp_path / "shapes-gan", license="cc0-1.0")
    text = (tmp_path / "shapes-gan" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    head = yaml.safe_load(front)
    assert head["license"] == "cc0-1.0" and head["pipeline_tag"] == "text-to-image" and head["library_name"] == "t2i"
    assert {"t2i", "text-to-image", "cgan"} <= set(head["tags"])
    (model,) = head["model-index"]
    assert model["name"] == "shapes-gan"
    (result,) = model["results"]
    assert (
        result["metrics"] == [{"type": "faithfulness-strict", "value": 0.4375, "name": "faithfulness-strict@9"}]
        and result["dataset"]["split"] == "val"
    )
    assert 'TextToImagePipeline.from_pretrained("shapes-gan")' in body and "(grid.png)" in body
    assert "| `generator.w_dim` | 32 |" in body and f"trained for {STEP} steps" in body
    assert "| faithfulness-strict@9 | 0.4375 | 0.4 to 0.5 | real 0.99 | folder:pictures val | scores-val.json |" in body
    assert "somebody" not in text
    copied = {path.name for path in (tmp_path / "shapes-gan").iterdir() if path.is_file()}
    assert copied == {"README.md", "grid.png", "model_index.json", "scores-val.json", "trained_on.safetensors"}
    assert (tmp_path / "shapes-gan" / "trained_on.safetensors").read_bytes() == b"hashes"
    # the scores travel along
    TextToImagePipeline.from_pretrained(tmp_path / "shapes-gan").save_pretrained(tmp_path / "again", prompts=[PROMPT])
    body = (tmp_path / "again" / "README.md").read_text()
    assert "faithfulness-strict@9" in body and f'pipe("{PROMPT}", ' in body


def test_captions_of_others_are_not_published(tmp_path):
    run = make_run(tmp_path / "run", data={"address": "folder:/home/somebody/pictures"})
    TextToImagePipeline.from_pretrained(run).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "grid.png").exists()
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "grid.png" not in card and "images of `folder:pictures`" in card and "somebody" not in card


def test_saving_never_overwrites(pipe, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("x")
    with pytest.raises(InputError, match="used holds files; name a new or an empty folder"):
        pipe.save_pretrained(tmp_path / "used")
    assert [path.name for path in tmp_path.rglob("*")] == ["used", "mine"]


def test_a_failed_save_leaves_nothing(pipe, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(pipe.text_encoder), "save", full)
    with pytest.raises(InputError, match="No space left on device"):
        pipe.save_pretrained(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["generator/model.safetensors", "generator/config.json"])
def test_a_damaged_component_is_noticed(saved, name):
    flip_a_bit(saved / name)
    refused(saved, f"{name} is damaged")
    (saved / name).unlink()
    refused(saved, f"cannot read {saved / name}")


def test_damaged_text_and_index(saved):
    fit_encoder(TextConfig(encoder="bow"), ["other words"]).save(saved / "text_encoder")
    refused(saved, "holds another text encoder")
    index = json.loads((saved / "model_index.json").read_text())
    (saved / "model_index.json").write_text(json.dumps(index | {"family": "vqvae"}))
    refused(saved, "family 'vqvae', which does not generate images")
    (saved / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionPipeline"}))
    refused(saved, "model_index.json is not an index of a t2i pipeline (_class_name")
    (saved / "model_index.json").write_text("[")
    refused(saved, "model_index.json is not an index of a t2i pipeline")


# ---- the hub -------------------------------------------------------------------------------------------------------


def test_without_a_network_the_hub_is_one_line(pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused("somebody/shapes-gan", "no folder 'somebody/shapes-gan' here, and none from the hub")
    (tmp_path / "runs").mkdir()
    refused("runs/typo", "runs/typo does not exist")
    with pytest.raises(InputError, match="cannot push to 'somebody/shapes-gan'.*hf auth login") as error:
        pipe.push_to_hub("somebody/shapes-gan", prompts=[])
    assert "\n" not in str(error.value)


def test_from_and_to_the_hub(pipe, saved, tmp_path, monkeypatch):
    asked: list[tuple] = []
    uploaded: dict[str, bytes] = {}
    given: list[dict] = []

    def snapshot_download(repo_id, allow_patterns, **options):
        asked.append((repo_id, allow_patterns))
        given.append(options)
        return str(saved)

    class Api:
        def create_repo(self, repo_id, private, exist_ok):
            asked.append((repo_id, private, exist_ok))
            return f"https://hub/{repo_id}"

        def upload_folder(self, repo_id, folder_path, commit_message):
            uploaded.update({path.name: path.read_bytes() for path in Path(folder_path).rglob("*") if path.is_file()})

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    again = TextToImagePipeline.from_pretrained("somebody/shapes-gan")
    assert np.array_equal(sampled(again, PROMPT, seed=1), sampled(pipe, PROMPT, seed=1))
    repo_id, patterns = asked.pop()
    assert repo_id == "somebody/shapes-gan"
    assert {pattern.rpartition(".")[2] for pattern in patterns} == {"safetensors", "json", "yaml", "txt"}
    of_hub = {"revision": "v1", "token": "t", "cache_dir": "c", "local_files_only": True, "force_download": False}
    TextToImagePipeline.from_pretrained("somebody/shapes-gan", torch_dtype=torch.float32, **of_hub)
    assert given == [{}, of_hub] and asked.pop()[0] == repo_id
    assert again.push_to_hub("me/mine", prompts=[], private=True) == "https://hub/me/mine"
    assert asked.pop() == ("me/mine", True, True)
    assert uploaded["model.safetensors"] == (saved / "generator" / "model.safetensors").read_bytes()
    assert b'from_pretrained("me/mine")' in uploaded["README.md"]
    (saved / "model_index.json").unlink()
    refused("somebody/other", "on the hub is not a t2i pipeline")
