from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ossicle.core.errors import ConfigError
from ossicle.launch.config import compose, conf_dir, groups, keys, nearest, refuse_nothing, spread


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


@pytest.mark.parametrize(
    ("stated", "spelt"),
    [
        ("mixer=[attention,summary]", ["mixer=pattern", "mixer.layers=[attention,summary]"]),
        (
            "mixer=[attention,{mixer: summary, kind: fast}]",
            ["mixer=pattern", "mixer.layers=[attention,{mixer: summary, kind: fast}]"],
        ),
        ("mixer=[attention,summary],[summary]", ["mixer=pattern", "mixer.layers=[attention,summary],[summary]"]),
        ("mixer=[attention,summary],hyena", ["mixer=pattern", "mixer.layers=[attention,summary],[hyena]"]),
        ("mixer=attention,summary", ["mixer=attention,summary"]),
        ("objective.layers=[1,2]", ["objective.layers=[1,2]"]),
        ("mixer=[attention", ["mixer=[attention"]),
    ],
)
def test_a_list_of_mixers_is_spelt_as_a_pattern_and_nothing_else_is_touched(stated: str, spelt: list[str]) -> None:
    assert spread(["-m", "seed=0,1", stated]) == ["-m", "seed=0,1", *spelt]


@pytest.mark.parametrize("group", ["frontend", "encoder", "experiment", "layer/head@objective.head"])
def test_a_list_for_a_part_of_which_there_is_one_is_refused(group: str) -> None:
    with pytest.raises(ConfigError, match="is one part, not a list of them") as caught:
        compose("pretrain", ["experiment=hubert_tiny", f"{group}=[one,other]"])
    assert f"-m {group.partition('@')[0]}=NAME,NAME" in caught.value.mend


@pytest.mark.parametrize(
    ("group", "options", "mend"),
    [("mixer", "[attention, summary]", "layers: [NAME, NAME]"), ("optim", "[adamw, adamw]", "override /optim: NAME")],
)
def test_a_list_of_options_in_a_configs_defaults_is_refused_too(
    group: str, options: str, mend: str, tmp_path: Path
) -> None:
    (tmp_path / "experiment").mkdir()
    head = f"# @package _global_\ndefaults:\n  - hubert_tiny\n  - override /{group}: "
    (tmp_path / "experiment" / "mine.yaml").write_text(f"{head}{options}\n", encoding="utf-8")
    chosen = ["experiment=mine", f"hydra.searchpath=[file://{tmp_path}]"]
    with pytest.raises(ConfigError, match=f"a list of options for {group}") as caught:
        compose("pretrain", chosen)
    assert mend in caught.value.mend
    assert compose("pretrain", [*chosen, f"{group}={options.strip('[]').split(',')[0]}"]).name == "hubert_tiny"


def test_the_choice_of_nothing_is_refused_with_the_way_to_leave_a_part_out() -> None:
    word = "layer/spec_augment@model.spec_augment=null"
    with pytest.raises(ConfigError, match="chooses nothing") as caught:
        compose("pretrain", ["experiment=spiral_tiny", word])
    assert "'~layer/spec_augment@model.spec_augment'" in caught.value.mend
    refuse_nothing(["optim.lr=null", "ema_decay=null", "mixer=attention", "-m"])
