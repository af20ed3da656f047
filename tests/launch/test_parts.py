import logging
from pathlib import Path

import pytest

from ossicle.core.errors import ConfigError
from ossicle.launch.binding import check_binding
from ossicle.launch.config import compose, groups
from ossicle.launch.experiment import build_on_meta, resolved
from ossicle.launch.parts import fit_parts
from tests.launch.toy import TOY, on, ossicle

NOWHERE = ("data.shards=nowhere", "batch_s=1", "data.batch_s=1")


def test_an_experiments_numbers_go_to_another_part_where_it_knows_them(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        config = resolved(compose("pretrain", ["experiment=hubert_tiny", "frontend=wave", *NOWHERE]))
    assert "band_shift" not in config["frontend"]
    assert "frontend.band_shift=5 is not for Wave: left out" in caplog.text
    check_binding(config)


def test_numbers_of_a_part_inside_a_part_go_to_the_one_in_its_place_too(caplog: pytest.LogCaptureFixture) -> None:
    chosen = ["experiment=vq_wav2vec_tiny", "data.shards=x", "layer/quantiser@frontend.quantiser=kmeans"]
    with caplog.at_level("INFO"):
        quantiser = resolved(compose("pretrain", chosen))["frontend"]["quantiser"]
    assert quantiser["num_codes"] == 320
    assert "temperature_decay" not in quantiser
    assert "frontend.quantiser.temperature_decay=0.99 is not for KMeansCodes: left out" in caplog.text


@pytest.mark.parametrize("name", groups()["experiment"])
def test_every_experiment_states_only_what_its_own_parts_take(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        resolved(compose("pretrain", [f"experiment={name}", *on("nowhere", name), *NOWHERE[1:]]))
    assert "left out" not in caplog.text


def test_what_the_command_line_states_is_never_left_out() -> None:
    node = {"_target_": "ossicle.mixer.attention.Attention", "_partial_": True, "windows": 3}
    kept = fit_parts({"mixer": node}, {"mixer.windows"})
    with pytest.raises(ConfigError, match=r"mixer\.windows"):
        check_binding(kept)
    check_binding(fit_parts({"mixer": node}, set()))


def test_a_stated_number_that_the_chosen_part_does_not_take_is_refused_on_the_command_line(tmp_path: Path) -> None:
    ran = ossicle(
        "pretrain", "experiment=hubert_tiny", "frontend=wave", *NOWHERE, "frontend.band_shift=3", cwd=tmp_path
    )
    assert ran.returncode == 2
    assert "frontend.band_shift" in ran.stderr


def test_a_pattern_of_names_becomes_the_mixers_with_the_experiments_numbers() -> None:
    overrides = ["experiment=wav2vec2_tiny", *TOY, "data.shards=nowhere", "mixer=pattern", "mixer.layers=[attention]"]
    config = resolved(compose("pretrain", overrides))
    (layer,) = config["mixer"]["layers"]
    assert layer["_target_"] == "ossicle.mixer.attention.Attention"
    assert layer["num_heads"] == 2
    build_on_meta(config)


def test_a_pattern_with_an_unknown_mixer_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean attention"):
        resolved(compose("pretrain", ["experiment=hubert_tiny", *NOWHERE, "mixer=pattern", "mixer.layers=[atention]"]))
