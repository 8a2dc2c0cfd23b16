"""Exported graphs equal their modules at any batch size, and sample the images of the pipeline."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from builders import tiny_text_models
from builders.exportable_runs import RUNS
from builders.tiny_run import CAPTIONS, make_run
from t2i.cli import app
from t2i.export import writing
from t2i.export.graphs import EXAMPLES, parts_of
from t2i.export.runner import ExportedModel
from t2i.export.text import text_part
from t2i.export.writing import Narrow, write_graph
from t2i.images import to_uint8
from t2i.pipeline import TextToImagePipeline
from t2i.sampling.prompts import image_seed
from t2i.text import TextConfig, fit_encoder

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", RUNS)
def test_the_folder_makes_the_images_of_the_pipeline(exported, capsys, name):
    run, out = exported(name)
    told = capsys.readouterr().out
    assert not told or "onnx, none" in told  # made for this test, or for one before
    pipe = TextToImagePipeline.from_pretrained(run)
    model = ExportedModel(out)
    for count in (1, 3):
        prompts = CAPTIONS[:count]
        ids, mask = text_part(pipe.text_encoder, prompts).tokenize(prompts)
        found = model.images(ids.numpy(), mask.numpy(), [image_seed(5, prompt, 0) for prompt in prompts])
        own = pipe(prompts, seed=5, output_type="uint8").images
        assert np.abs(to_uint8(torch.from_numpy(found)).astype(int) - own).max() <= 1
    for told in model.manifest["graphs"].values():
        assert {one["shape"][0] for one in told["inputs"].values()} == {"batch"}


@pytest.mark.parametrize("name", RUNS)
def test_every_graph_takes_batches_of_any_size(exported, name):
    run, out = exported(name)
    pipe, model = TextToImagePipeline.from_pretrained(run), ExportedModel(out)
    captions = CAPTIONS[:EXAMPLES]
    graphs = {"text": text_part(pipe.text_encoder, captions).graph} | parts_of(
        pipe, pipe.text_encoder.encode(captions)
    ).graphs
    assert set(graphs) == set(model.manifest["graphs"])
    for key, graph in graphs.items():
        for count in (2, 5):  # others than those that the export itself tries
            given = {name: value[torch.arange(count) % EXAMPLES] for name, value in graph.inputs.items()}
            with torch.no_grad():
                own = graph.module(*given.values())
            found = model.run(key, **{name: value.numpy() for name, value in given.items()})
            for one, theirs in zip(own if isinstance(own, tuple) else (own,), found.values(), strict=True):
                torch.testing.assert_close(torch.from_numpy(theirs), one, atol=1e-4, rtol=1e-4)


def test_a_machine_without_a_kernel_is_told_in_one_line(tmp_path, capsys, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    for package in writing.NEEDED["onnx"]:
        pytest.importorskip(package)

    def lacking(*_, **__):
        raise RuntimeError("NOT_IMPLEMENTED : Could not find an implementation\nfor MatMulInteger(10)")

    monkeypatch.setattr(onnxruntime, "InferenceSession", lacking)
    run, out = make_run(tmp_path / "run"), tmp_path / "out"
    assert app.main(["export", str(run), str(out), "-n", "0", "--quantize", "int8"]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(told) == 1 and "cannot run text.onnx on this machine" in told[0] and "use --format torch" in told[0]
    assert not out.exists()


def test_programs_of_torch_are_the_same(tmp_path):
    run, out = make_run(tmp_path / "run"), tmp_path / "out"
    assert app.main(["export", str(run), str(out), "--format", "torch", "--quantize", "int8", "-n", "0"]) == 0
    assert json.loads((out / "manifest.json").read_text())["quantize"] == "int8"
    pipe, model = TextToImagePipeline.from_pretrained(run), ExportedModel(out)
    ids, mask = text_part(pipe.text_encoder, CAPTIONS).tokenize(CAPTIONS[:2])
    found = model.images(ids.numpy(), mask.numpy(), [image_seed(5, prompt, 0) for prompt in CAPTIONS[:2]])
    own = pipe(CAPTIONS[:2], seed=5, output_type="pt").images.numpy() * 2 - 1
    assert 0 < np.abs(found.clip(-1, 1) - own).mean() < 0.05


@pytest.mark.parametrize("encoder", ["bow", "tfidf", "word2vec"])
def test_classical_encoders_are_a_table_of_rows(encoder):
    found = fit_encoder(TextConfig(encoder=encoder), CAPTIONS)
    captions = ["a red circle on an unheard thing", "", *CAPTIONS]
    part, own = text_part(found, captions), found.encode(captions)
    tokens, pooled = part.graph.module(*part.graph.inputs.values())
    torch.testing.assert_close(tokens, own.tokens_BTD)
    torch.testing.assert_close(pooled, own.pooled_BP)
    assert torch.equal(part.graph.inputs["mask"], own.mask_BT)


@pytest.mark.parametrize(("kind", "error"), [("fp16", 2e-3), ("int8", 3e-2)])
def test_narrow_weights_are_near_and_the_module_stays_as_it_is(kind, error):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 3))
    x, before = torch.randn(5, 64), {name: one.clone() for name, one in module.state_dict().items()}
    narrow, own = Narrow(module, kind), module(x)
    assert 0 < (narrow(x) - own).abs().max() / own.abs().max() < error
    assert all(torch.equal(one, before[name]) for name, one in module.state_dict().items())
    assert narrow.get_buffer("0__weight").dtype == {"fp16": torch.float16, "int8": torch.int8}[kind]


def test_mistakes_are_told_before_any_work(tmp_path, capsys, monkeypatch):
    (tmp_path / "out").mkdir()
    assert app.main(["export", "cgan", str(tmp_path / "out")]) == 2
    assert f"{tmp_path / 'out'} exists" in capsys.readouterr().err
    monkeypatch.setitem(writing.NEEDED, "onnx", ("onnx", "no_such_package"))
    assert app.main(["export", "cgan", str(tmp_path / "new")]) == 2
    told = capsys.readouterr().err
    assert "no_such_package" in told and "pip install 't2i[export]'" in told and len(told.splitlines()) == 1
    assert app.main(["export", str(ROOT / "tests/golden/vqvae"), str(tmp_path / "new"), "--format", "torch"]) == 2
    assert "does not generate images; families that do: cgan" in capsys.readouterr().err


def test_the_program_of_the_docs_samples_with_numpy_and_onnxruntime_alone(tmp_path):
    for package in writing.NEEDED["onnx"]:
        pytest.importorskip(package)
    (source,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text("utf-8"), re.DOTALL)
    assert set(re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE)) == {
        "json",
        "pathlib",
        "numpy",
        "onnxruntime",
    }
    out, prompt = tmp_path / "out", "a small red star left of a large green ring"
    assert app.main(["export", "cgan", str(out), "-n", "0"]) == 0
    (tmp_path / "program.py").write_text(source)
    command = [sys.executable, "program.py", str(out), prompt, "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    image = np.load(tmp_path / "image.npy")
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    # the same noise through the model itself, so that the tokenizer of the program is checked too
    pipe = TextToImagePipeline.from_pretrained("cgan")
    noise = torch.from_numpy(np.random.default_rng(3).standard_normal((1, 64), np.float32))
    from t2i.cgan.sampling import sample

    own = to_uint8(sample(pipe.sampler.generator, noise, pipe.text_encoder.encode([prompt])))[0]
    assert np.abs(image.astype(int) - own).max() <= 1


@pytest.mark.parametrize("kind", ["clip", "t5", "bert"])
def test_towers_of_transformers_keep_a_free_batch(tmp_path, kind):
    folder = tmp_path / kind
    tiny_text_models.save_clip(folder, "projected") if kind == "clip" else getattr(tiny_text_models, f"save_{kind}")(
        folder
    )
    encoder = fit_encoder(TextConfig(encoder=kind, path=str(folder), max_tokens=12), [])
    captions = [*CAPTIONS[:2], "red"]
    part, own = text_part(encoder, captions), encoder.encode(captions)
    written = write_graph(part.graph, tmp_path / "text", "torch", "none")
    program = torch.export.load(tmp_path / written.file).module()
    for count in (1, 3):
        tokens, pooled = program(*(value[:count].contiguous() for value in part.graph.inputs.values()))
        torch.testing.assert_close(tokens, own.tokens_BTD[:count], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(pooled, own.pooled_BP[:count], atol=1e-4, rtol=1e-4)
