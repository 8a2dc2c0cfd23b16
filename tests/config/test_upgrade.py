"""Keys of older configs: read from old runs, refused with the reason in new ones."""

import json
from pathlib import Path
from typing import Any

import pytest

from t2i.config.explain import ConfigError
from t2i.config.load import flat, load
from t2i.config.upgrade import FIXED, UNREAD, trained_otherwise, upgraded
from t2i.families import config_class

GOLDEN = Path(__file__).parents[1] / "golden"


def kept(family: str, **changes: Any) -> dict[str, Any]:
    """Returns a config of version 0.1 with every key it had, of every kind."""
    values: dict[str, Any] = config_class(family)().model_dump(mode="json")
    for key, value in (FIXED[family] | changes).items():
        *sections, name = key.split(".")
        place = values
        for section in sections:
            place = place[section]
        place[name] = value
    return values


@pytest.mark.parametrize("family", list(FIXED))  # those that 0.1 had
def test_a_kept_config_is_read_and_is_that_of_today(family):
    assert config_class(family).model_validate(kept(family)) == config_class(family)()
    written = json.loads(json.dumps(config_class(family)().model_dump(mode="json")))
    assert upgraded(family, written) == written  # today's own is left alone


@pytest.mark.parametrize("family", list(FIXED))
def test_golden_configs_are_read(family):
    path = GOLDEN / family / "config.yaml"
    assert flat(load(config_class(family), path))["max_train_steps"] == 12


@pytest.mark.parametrize(("place", "keys"), UNREAD.items(), ids=str)
def test_what_a_kept_kind_never_read_is_left_out(place, keys):
    family, kind_key, kind = place
    values = kept(family)
    section, _, name = kind_key.partition(".")
    own = {"weight": 0.5} if section == "guidance" else {}
    common = {key: values[section][key] for key in ("negatives", "reconstruction") if key in values[section]}
    values[section] = own | common | {name: kind} | {key.partition(".")[2]: None for key in keys}
    found = getattr(config_class(family).model_validate(values), section)
    assert getattr(found, name) == kind
    for key in keys:
        with pytest.raises(ConfigError, match=f"{key}: has no effect on {kind}"):
            load(config_class(family), None, [f"{section}={{{name}: {kind}}}", f"{key}=1"])


@pytest.mark.parametrize(("family", "key"), [(family, key) for family, keys in FIXED.items() for key in keys])
def test_a_key_that_is_fixed_now_says_so(family, key):
    if key == "logging_seconds":
        return  # marks a kept config, where every key may be read
    with pytest.raises(ConfigError, match="is no longer a key, got 3.*; it is now always .*, remove it"):
        load(config_class(family), None, [f"{key}=3"])


def test_a_run_trained_with_another_value_is_known():
    assert trained_otherwise("prior", kept("prior")) == {}
    assert trained_otherwise("prior", kept("prior", max_grad_norm=0.5)) == {"max_grad_norm": (0.5, 1.0)}
    assert trained_otherwise("cgan", kept("cgan", **{"loss.centering": 0.0})) == {"loss.centering": (0.0, 0.01)}
    assert trained_otherwise("cgan", config_class("cgan")().model_dump()) == {}


def test_another_kind_leaves_the_keys_of_the_file_behind_but_not_those_of_the_command():
    cls = config_class("vqvae")
    assert (
        load(cls, "vqvae-tiny", ["quantizer.kind=scalar"]).quantizer
        == cls.model_validate({"quantizer": {"kind": "scalar"}}).quantizer
    )
    with pytest.raises(ConfigError, match="quantizer.dim: has no effect on scalar, got 4"):
        load(cls, "vqvae-tiny", ["quantizer.dim=4", "quantizer.kind=scalar"])
    with pytest.raises(ConfigError, match="quantizer.kind: must be 'vector', .* or 'scalar', got 'vectr'"):
        load(cls, "vqvae-tiny", ["quantizer.kind=vectr"])
