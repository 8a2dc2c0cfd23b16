"""Training on published layouts by the command line: every kind, every family, and the configs for them."""

import json
from pathlib import Path

import pytest

from builders import published_layouts as layouts
from builders.small_settings import ALIGN, GAN, SMALL, VQVAE
from t2i import checkpoint
from t2i.cli import app
from t2i.config.load import load, shipped
from t2i.families import config_class
from t2i.training import journal

TINY_PRIOR = [
    "model={width: 16, depth: 2, heads: 2, mlp_width: 16}",
    "order=random",
    "sampling.steps=3",
    "validation_steps=1000",
]
FEW = [*SMALL, "data.limit=null", "lr_warmup_steps=1"]
KEYS = {
    "cgan": [*FEW, *GAN, "generator.cross_attention=false"],
    "align": [*FEW, *ALIGN],
    "vqvae": [*FEW, *VQVAE, "loss.lpips=0"],
    "prior": [*FEW, *TINY_PRIOR, "text={encoder: bow}"],
}
CONFIGS = {
    "cgan-coco64": ("cgan", layouts.coco),
    "cgan-cub128": ("cgan", layouts.cub),
    "cgan-flowers64": ("cgan", layouts.flowers),
    "vqvae-coco256": ("vqvae", layouts.coco),
    "prior-coco256": ("prior", layouts.coco),
}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T2I_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Writes a data set of every kind."""
    root = tmp_path_factory.mktemp("data")
    return {kind: write(root / kind) for kind, write in layouts.LAYOUTS.items()}


def train(family: str, config: str, address: str, run: Path, *sets: str, steps: int = 5) -> None:
    words = ["train", family, "--config", config, "--data", address, "--run-dir", str(run)]
    keys = [
        *KEYS[family],
        f"max_train_steps={steps}",
        "dataloader_num_workers=0",
        "gradient_accumulation_steps=1",
        *sets,
    ]
    assert app.main(words + [word for key in keys for word in ("--set", key)]) == 0
    newest = checkpoint.latest(run / "checkpoints")
    assert newest is not None and newest.name == f"step-{steps:08d}"
    records = [r for r in journal.read(run / "journal.jsonl") if "learning_rate" in r]
    assert [r["step"] for r in records] == list(range(1, steps + 1))
    assert all(r.get("skipped", 0) == 0 for r in records)


def test_all_families_train_on_one_format(places: dict[str, Path], tmp_path: Path) -> None:
    address = f"shards:{places['shards']}/{{00000..00001}}.tar"
    tokenizer = f"tokenizer.path={json.dumps(str(tmp_path / 'vqvae'))}"
    for family, more in (("align", ()), ("cgan", ()), ("vqvae", ()), ("prior", (tokenizer,))):
        train(family, f"{family}-tiny", address, tmp_path / family, *more, steps=2)
        kept = load(config_class(family), tmp_path / family)
        assert kept.data.address == address  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [kind for kind in layouts.LAYOUTS if kind not in ("shards", "folder")])
def test_every_format_trains(kind: str, places: dict[str, Path], tmp_path: Path) -> None:
    train("align", "align-tiny", f"{kind}:{places[kind]}", tmp_path / "run", steps=2)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_the_configs_of_published_data_run(name: str, tmp_path: Path, capsys) -> None:
    assert name in shipped()
    family, write = CONFIGS[name]
    address = f"{write.__name__}:{write(tmp_path / 'data')}"
    more: list[str] = []
    if family == "prior":
        train("vqvae", "vqvae-coco256", address, tmp_path / "vqvae", steps=1)
        more = [f"tokenizer.path={json.dumps(str(tmp_path / 'vqvae'))}"]
    capsys.readouterr()
    keys = [*KEYS[family], *more]
    words = ["train", family, "--config", name, "--data", address, "--run-dir", str(tmp_path / "run"), "--dry-run"]
    assert app.main(words + [word for key in keys for word in ("--set", key)]) == 0
    assert f"address: {address}" in capsys.readouterr().out and not (tmp_path / "run").exists()
    train(family, name, address, tmp_path / "run", *more)


def test_a_run_on_bad_data_stops_before_it_begins(tmp_path: Path, capsys) -> None:
    root = layouts.coco(tmp_path / "data")
    for address, says in (
        (f"coco:{root}?split=train2013", "no split 'train2013'"),
        (f"cub:{root}", "looked for images.txt"),
    ):
        assert app.main(["train", "cgan", "--data", address, "--run-dir", str(tmp_path / "run")]) == 2
        shown = capsys.readouterr().err.strip().splitlines()
        assert len(shown) == 1 and shown[0].startswith("error: ") and says in shown[0]
        assert not (tmp_path / "run").exists()
