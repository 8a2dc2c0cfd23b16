"""The recipes of docs/recipes, run with replacements for the programs of a cluster."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from t2i.cli.train import TrainOptions
from t2i.config.load import load
from t2i.config.options import flag_of
from t2i.families import config_class

RECIPES = Path(__file__).resolve().parents[2] / "docs" / "recipes"
STAND_INS = {
    "torchrun": 'printf "%s\\n" "$@" > "$ASKED"',
    "srun": 'exec "$@"',
    "scontrol": 'echo "$*" >> "$ASKED.scontrol"; [ "$1" = show ] && echo head; true',
    "nvidia-smi": "echo GPU 0; echo GPU 1",
}
CLUSTER = {
    "DATA": "shards:s3://bucket/train-{000..063}.tar", "SLURM_JOB_NODELIST": "head,next", "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NODEID": "1", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "7", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_GPUS_PER_NODE": "8", "BUCKET": "bucket",
}  # fmt: skip


def asked(script: str, folder: Path, **variables: str) -> list[str]:
    """Returns the arguments of torchrun."""
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    environment = os.environ | CLUSTER | {"PATH": f"{folder}:{os.environ['PATH']}", "ASKED": str(folder / "asked")}
    environment |= {"RUN": str(folder / "runs" / "prior")} | variables
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    subprocess.run(["bash"], input=script, text=True, check=True, env=environment)
    return (folder / "asked").read_text().splitlines()


def script_of(name: str) -> str:
    text = (RECIPES / name).read_text()
    return yaml.safe_load(text)["run"] if name.endswith(".yaml") else text


@pytest.mark.parametrize(
    ("name", "machines", "gpus"), [("nodes.sh", 1, 2), ("slurm.sh", 2, 8), ("skypilot.yaml", 2, 8)]
)
def test_a_recipe_starts_a_command_that_works(name: str, machines: int, gpus: int, tmp_path: Path) -> None:
    launch = get_args_parser().parse_args(asked(script_of(name), tmp_path))
    assert (int(launch.nnodes), int(launch.nproc_per_node), launch.node_rank) == (machines, gpus, machines - 1)
    assert launch.module and launch.training_script == "t2i.cli"
    program, family, *words = launch.training_script_args
    assert program == "train"
    values = dict(zip(words[::2], words[1::2], strict=True))
    assert set(values) <= {flag_of(name, field) for name, field in TrainOptions.model_fields.items()}
    sets = [value for flag, value in zip(words[::2], words[1::2], strict=True) if flag == "--set"]
    config = load(config_class(family), values["--config"], [*sets, f"data.address={values['--data']!r}"])
    assert config.sharding == "full" and config.data.address == CLUSTER["DATA"]  # type: ignore[attr-defined]
    assert values["--run-dir"].endswith("runs/prior")


def test_a_job_that_was_stopped_queues_itself_again(tmp_path: Path) -> None:
    asked(script_of("slurm.sh"), tmp_path)
    assert "requeue" not in (tmp_path / "asked.scontrol").read_text()
    (tmp_path / "runs" / "prior").mkdir(parents=True)
    (tmp_path / "runs" / "prior" / "STOPPED").touch()
    asked(script_of("slurm.sh"), tmp_path)
    assert "requeue 7" in (tmp_path / "asked.scontrol").read_text()


def test_the_file_of_skypilot_has_the_keys_that_it_knows() -> None:
    found = yaml.safe_load((RECIPES / "skypilot.yaml").read_text())
    known = {"name", "num_nodes", "workdir", "resources", "envs", "file_mounts", "setup", "run"}
    assert set(found) == known and found["resources"] == {"accelerators": "H100:8"}
    subprocess.run(["bash", "-n"], input=found["setup"], text=True, check=True)
