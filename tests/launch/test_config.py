import pytest
from omegaconf import OmegaConf

from ossicle.core.errors import ConfigError
from ossicle.launch.config import compose, conf_dir, groups, keys, nearest


def test_configs_are_found() -> None:
    assert (conf_dir() / "pretrain.yaml").is_file()
    assert "hubert_tiny" in groups()["experiment"]


def test_the_nearest_words_are_named_and_nothing_where_none_is_near() -> None:
    assert nearest("atention", ["attention", "summary"]) == "; did you mean attention?"
    assert nearest("zzz", ["attention"]) == ""


def test_keys_are_listed_with_dots_and_missing_values_are_left_alone() -> None:
    config = OmegaConf.create({"a": {"b": 1, "c": "???"}, "d": [1], "e": "${a.c}"})
    assert keys(config) == ["a", "a.b", "a.c", "d", "e"]


def test_a_composed_config_takes_overrides() -> None:
    assert compose("pretrain", ["experiment=hubert_tiny", "optim.lr=0.1"]).optim.lr == 0.1


@pytest.mark.parametrize("override", ["optim.lrr=1", "mixer=atention", "nothing=1"])
def test_what_does_not_exist_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        compose("pretrain", ["experiment=hubert_tiny", override])
