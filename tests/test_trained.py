"""Reading trained runs: the checkpoint, the weights, and nothing outside the run."""

import hashlib
import json
import os
import random
import shutil
import warnings
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from builders.tiny_run import make_run
from builders.tiny_tokenizer import make_run as make_tokenizer_run
from t2i import checkpoint
from t2i.errors import InputError
from t2i.pipeline import TextToImagePipeline
from t2i.trained import checked, open_run, refuse_links

GOLDEN = Path(__file__).parent / "golden"
WANTED = {"family": "cgan", "step": 1, "config": {"data": {"address": "shapes-1", "resolution": 32, "fit": "center"}}}


@pytest.mark.parametrize(
    ("parts", "chosen"), [(("model", "ema", "best"), "best"), (("model", "ema"), "ema"), (("model",), "model")]
)
def test_the_best_weights_come_before_the_averaged_and_the_last(tmp_path, parts, chosen):
    run = make_tokenizer_run(tmp_path / "run")
    own = checkpoint.load(run / "checkpoints" / "step-00000005")[1]
    own = {key: value for key, value in own.items() if key not in ("schema", "step", "files", "sha256")}
    state = {part: {"w": torch.full((1,), k)} for k, part in enumerate(parts)}
    checkpoint.save(run / "checkpoints", 6, state, own)
    found = open_run(run)
    assert found.checkpoint.name == "step-00000006" and found.family == "vqvae"
    assert found.weights is found.state[chosen]


def test_golden_runs_say_what_they_are():
    for family in ("align", "cgan", "vqvae", "prior"):
        run = open_run(GOLDEN / family)
        assert run.family == family and run.manifest["step"] == 12
        assert run.manifest == checkpoint.load(run.checkpoint)[1]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"family": 7}, "family"),
        ({"step": "9"}, "step"),
        ({"step": -1}, "step"),
        ({"config": None}, "config"),
        ({"config": {"data": []}}, "config.data"),
        ({"config": {"data": {"address": 5, "resolution": 32, "fit": "center"}}}, "config.data.address"),
        ({"config": {"data": {"address": "a", "resolution": 10**9, "fit": "center"}}}, "config.data.resolution"),
        ({"config": {"data": {"address": "a", "resolution": 32, "fit": "stretch"}}}, "config.data.fit"),
        ({"images_seen": "many"}, "images_seen"),
        ({"versions": ["0.1.0"]}, "versions"),
        ({"text_digest": 3}, "text_digest"),
        ({"best": {"metric": "fid"}}, "best.value"),
        ({"best": {"metric": "fid", "value": "low", "step": 1}}, "best.value"),
    ],
)
def test_an_odd_manifest_is_refused_by_its_key(change, key):
    assert checked(WANTED | {"versions": {"torch": "2"}}, Path("m.json")) == WANTED | {
        "versions": {"torch": "2", "t2i": "unknown"}, "images_seen": 0, "sha256": "", "config_hash": "",
    }  # fmt: skip
    with pytest.raises(
        InputError, match=rf"m.json is not a manifest that this version of t2i can read \({key}: "
    ) as error:
        checked(WANTED | change, Path("m.json"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["checkpoints", "text", "samples", "sampling.json", "trained_on.safetensors"])
def test_a_link_that_leads_out_of_a_run_is_refused(tmp_path, name):
    run = make_run(tmp_path / "run")
    outside = tmp_path / "outside"
    if (run / name).exists():
        os.rename(run / name, outside)
    else:
        outside.mkdir()
    (run / name).symlink_to(outside)
    with pytest.raises(InputError, match=f"{name} is a link that leads out of"):
        TextToImagePipeline.from_pretrained(run)


def test_a_link_to_a_weight_file_elsewhere_is_refused(tmp_path):
    run = make_run(tmp_path / "run")
    weights = run / "checkpoints" / "step-00000007" / "ema.safetensors"
    os.rename(weights, tmp_path / "ema.safetensors")
    weights.symlink_to(tmp_path / "ema.safetensors")
    with pytest.raises(InputError, match="is a link that leads out of"):
        open_run(run)


ODD = (None, 7, -1, 2**70, 1.5, "x", [], {}, [None], True, {"a": {}})


def leaves(tree: dict, above: tuple = ()) -> Iterator[tuple]:
    for key, value in tree.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from leaves(value, (*above, key))


def changed(tree: dict, path: tuple, value: object) -> dict:
    """Returns a copy with another value at one place, or without it if the value is `...`."""
    copy = deepcopy(tree)
    node = copy
    for key in path[:-1]:
        node = node[key]
    if value is ...:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return copy


def test_odd_values_in_an_index_work_or_are_one_line(tmp_path):
    saved = Path(shutil.copytree(GOLDEN / "saved", tmp_path / "saved"))
    index = json.loads((saved / "model_index.json").read_text())
    cases = [(path, value) for path in leaves(index) for value in (*ODD, ...)]
    refused = 0
    for path, value in random.Random(0).sample(cases, 60):
        (saved / "model_index.json").write_text(json.dumps(changed(index, path, value)))
        try:
            repr(TextToImagePipeline.from_pretrained(saved))
        except InputError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 500, (path, value)
    assert refused > 10


@pytest.mark.parametrize("values", [[], None, 7, {}, {"family": "prior"}], ids=str)
def test_a_component_without_a_config_is_one_line(tmp_path, values):
    saved = Path(shutil.copytree(GOLDEN / "saved", tmp_path / "saved"))
    index = json.loads((saved / "model_index.json").read_text())
    data = json.dumps(values).encode()
    (saved / "prior" / "config.json").write_bytes(data)
    index["sha256"]["prior/config.json"] = hashlib.sha256(data).hexdigest()
    (saved / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError) as error:
        TextToImagePipeline.from_pretrained(saved)
    assert "\n" not in str(error.value) and str(saved) in str(error.value)


def test_links_inside_a_run_and_to_a_run_are_followed(tmp_path):
    run = make_run(tmp_path / "run")
    os.rename(run / "text", run / "words")
    (run / "text").symlink_to("words")
    (tmp_path / "link").symlink_to(run)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert TextToImagePipeline.from_pretrained(tmp_path / "link").family == "cgan"


def test_the_cache_of_the_hub_links_to_its_blobs(tmp_path):
    blob, snapshot = tmp_path / "models--a--b" / "blobs" / "1", tmp_path / "models--a--b" / "snapshots" / "c"
    blob.parent.mkdir(parents=True), snapshot.mkdir(parents=True)
    blob.write_text("{}")
    (snapshot / "model_index.json").symlink_to(blob)
    refuse_links(snapshot, "model_index.json")
    (snapshot / "other").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="other is a link that leads out of"):
        refuse_links(snapshot, "other")


def test_a_pipe_is_no_file(tmp_path):
    run = make_run(tmp_path / "run")
    os.mkfifo(run / "sampling.json")
    with pytest.raises(InputError, match="sampling.json is a pipe or a device"):
        TextToImagePipeline.from_pretrained(run)


@pytest.mark.parametrize("name", ["config.yaml", "checkpoints/step-00000007/manifest.json", "text/encoder.json"])
def test_a_link_to_itself_in_a_run_is_one_line(tmp_path, name):
    run = make_run(tmp_path / "run")
    (run / name).unlink()
    (run / name).symlink_to((run / name).name)
    if name == "config.yaml":
        assert TextToImagePipeline.from_pretrained(run).family == "cgan"
        return
    with pytest.raises(InputError) as error:
        TextToImagePipeline.from_pretrained(run)
    assert "\n" not in str(error.value)


def test_a_run_that_is_a_link_to_itself_is_one_line(tmp_path):
    (tmp_path / "run").symlink_to("run")
    for read in (open_run, open_runs_of_report, open_scorer):
        with pytest.raises(InputError, match="run"):
            read(tmp_path / "run")


def open_runs_of_report(place: Path) -> None:
    from t2i.report.runs import open_runs

    open_runs([place])


def open_scorer(place: Path) -> None:
    from t2i.extractors import open_extractor

    open_extractor(f"align:{place}")
