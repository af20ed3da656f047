import logging
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from safetensors.torch import load_file

from ossicle.core.errors import ConfigError
from ossicle.launch.binding import check_binding
from ossicle.launch.config import compose, groups
from ossicle.launch.experiment import build_on_meta, resolved
from ossicle.launch.parts import PATTERN, fit_parts, option
from tests.launch.toy import TOY, on, ossicle, single_run

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


@pytest.mark.parametrize("augmentation", ["none", "gain", "noise", "speed"])
def test_numbers_of_an_augmentation_are_left_out_where_another_does_not_take_them(augmentation: str) -> None:
    for name in ("nest_tiny", "wavlm_base"):
        config = resolved(compose("pretrain", [f"experiment={name}", "data.shards=x", f"augmentation={augmentation}"]))
        check_binding(config)
        build_on_meta(config)


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


def pattern(layers: object, stated: dict[str, Any] | None = None, **shared: object) -> list[dict[str, Any]]:
    """The mixers of a hybrid under an experiment's numbers and the command line's."""
    node = {"_target_": PATTERN, "layers": layers, **shared, **(stated or {})}
    fitted = fit_parts({"mixer": node}, {f"mixer.{key}" for key in stated or {}})
    check_binding(fitted)
    return fitted["mixer"]["layers"]


def test_each_layer_of_a_hybrid_takes_its_own_numbers_before_the_experiments_and_those_before_its_files() -> None:
    fast = {"mixer": "summary", "kind": "fast", "num_heads": 2}
    whole = {"_target_": "ossicle.mixer.summary.Summary", "_partial_": True, "dropout": 0.3}
    attention, own, node = pattern(["attention", fast, whole], num_heads=3, dropout=0.0)
    assert (attention["_target_"], attention["num_heads"]) == ("ossicle.mixer.attention.Attention", 3)
    assert own == option("summary", "mixer") | {"kind": "fast", "num_heads": 2, "dropout": 0.0}
    assert node == whole | {"num_heads": 3}


def test_the_config_of_a_hybrid_that_was_run_is_read_again_as_it_is() -> None:
    layers = pattern(["attention", {"mixer": "summary", "kind": "fast"}], num_heads=3)
    assert pattern(layers) == layers


@pytest.mark.parametrize(
    ("layers", "problem"),
    [
        ("attention", r"mixer\.layers=attention is no list"),
        (None, r"mixer\.layers=None is no list"),
        ({"mixer": "attention"}, "is no list"),
        ([], "is no list of mixers"),
        ([3], r"mixer\.layers\[0\]=3 names no mixer"),
        (["attention", None], r"mixer\.layers\[1\]=None names no mixer"),
        (["attention", {"kind": "fast"}], r"mixer\.layers\[1\]={'kind': 'fast'} names no mixer"),
        ([{"mixer": 3}], "names no mixer"),
        ([{"mixer": "summary", "_target_": "ossicle.mixer.summary.Summary"}], "names no mixer"),
        (["attention", "pattern"], r"mixer\.layers\[1\] is a pattern"),
        ([{"mixer": "sumary"}], "did you mean summary"),
        ([{"mixer": "summary", "kindd": "fast"}], r"mixer\.layers\[0\]\.kindd: .* did you mean kind"),
    ],
)
def test_layers_that_are_no_list_of_mixers_are_refused_by_their_place(layers: object, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        pattern(layers)
    assert caught.value.mend


def test_what_is_stated_for_a_hybrid_is_refused_where_none_of_its_mixers_takes_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert pattern(["attention", "summary"], {"kind": "fast"})[1]["kind"] == "fast"
    with pytest.raises(ConfigError, match=r"mixer\.kindd=fast: no mixer of mixer\.layers takes it; did you mean kind"):
        pattern(["attention", "summary"], {"kindd": "fast"})
    with caplog.at_level(logging.INFO):
        pattern(["attention", "summary"], window=64)  # an experiment's own, of another mixer
    assert "mixer.window=64 is for no mixer of mixer.layers: left out" in caplog.text


def test_a_hybrid_of_more_mixers_than_layers_is_refused() -> None:
    layers = "mixer=[attention,summary,fourier,hyena,ligru]"
    config = resolved(compose("pretrain", ["experiment=hubert_tiny", *NOWHERE, layers]))
    with pytest.raises(ConfigError, match="names 5 mixers, and there are 3 layers"):
        build_on_meta(config)


def test_an_experiments_null_is_left_out_where_a_part_takes_numbers_alone(caplog: pytest.LogCaptureFixture) -> None:
    node = {"_target_": "ossicle.mixer.summary.Summary", "_partial_": True, "num_heads": None}
    with caplog.at_level(logging.INFO):
        assert "num_heads" not in fit_parts({"mixer": node}, set())["mixer"]
    assert "mixer.num_heads=None is not for Summary: left out" in caplog.text
    with pytest.raises(ConfigError, match=r"mixer\.num_heads=None is not what it can be"):
        check_binding(fit_parts({"mixer": node}, {"mixer.num_heads"}))
    attention = node | {"_target_": "ossicle.mixer.attention.Attention"}
    assert fit_parts({"mixer": attention}, set())["mixer"]["num_heads"] is None


@pytest.mark.parametrize("name", ["essl_tiny", "spiral_tiny"])
def test_encoders_whose_width_grows_take_every_mixer_and_a_hybrid(name: str) -> None:
    composed = compose("pretrain", [f"experiment={name}", "data.shards=nowhere"])
    plain = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(plain, dict)
    numbers = {"num_heads": None, "head_dim": 64, "dropout": 0.0}
    assert numbers.items() <= plain["mixer"].items()
    hybrid = {"_target_": PATTERN, "layers": ["attention", "summary"]}
    chosen = [option(mixer, "mixer") for mixer in groups()["mixer"] if mixer != "pattern"]
    for node in [*chosen, hybrid]:
        config = fit_parts({str(key): value for key, value in plain.items()} | {"mixer": node | numbers}, set())
        check_binding(config)
        build_on_meta(config)


def test_a_hybrid_with_numbers_of_one_layer_trains_from_the_command_line(
    synthetic_dataset: Path, tmp_path: Path
) -> None:
    hybrid = ("mixer=[attention,{mixer: summary, kind: fast}]", "max_steps=2", f"data.shards={synthetic_dataset}")
    ran = ossicle("pretrain", "experiment=best_rq_tiny", *TOY, *hybrid, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    names = load_file(single_run(tmp_path / "runs", "best_rq_tiny") / "encoder.safetensors").keys()
    assert any("blocks.0.mixer.query" in name for name in names)
    assert any("blocks.1.mixer.joint" in name for name in names)
