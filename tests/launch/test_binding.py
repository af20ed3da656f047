from typing import Literal

import pytest

from ossicle.core.errors import ConfigError
from ossicle.launch.binding import check_binding, check_number, targets
from ossicle.launch.config import compose
from ossicle.launch.experiment import check, resolved

CLOCK = "ossicle.core.clock.FrameClock"


def test_nodes_are_found_at_any_depth() -> None:
    config = {"a": {"_target_": CLOCK}, "b": [{"c": {"_target_": CLOCK}}]}
    assert [path for path, _ in targets(config)] == ["a", "b[0].c"]


def test_a_node_that_fits_passes() -> None:
    check_binding({"clock": {"_target_": CLOCK, "kernel_samples": 400, "stride_samples": 320}})


def test_a_misspelt_argument_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"kernel_sampels.*did you mean kernel_samples"):
        check_binding({"clock": {"_target_": CLOCK, "kernel_sampels": 400}})


def test_a_missing_argument_is_refused_unless_it_is_injected_later() -> None:
    check_binding({"share": {"_target_": "ossicle.launch.preflight.share_batch", "_partial_": True}})
    with pytest.raises(ConfigError, match="batch_s"):
        check_binding({"share": {"_target_": "ossicle.launch.preflight.share_batch"}})


@pytest.mark.parametrize("target", ["ossicle.core.clock.FrameClok", "ossicle.core.nothing.X"])
def test_a_class_that_does_not_exist_is_refused(target: str) -> None:
    with pytest.raises(ConfigError, match="_target_"):
        check_binding({"clock": {"_target_": target}})


@pytest.mark.parametrize(
    ("value", "annotation"),
    [("abc", int), ("abc", float | None), (None, int), (1.5, int), (True, float), ([1], float), (1, bool), ("1", int)],
)
def test_what_is_no_number_is_refused_where_numbers_alone_are_taken(value: object, annotation: object) -> None:
    with pytest.raises(ConfigError, match=r"optim\.lr="):
        check_number("optim.lr", value, annotation)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (1, int),
        (3e4, int),
        (1, float),
        (1e-3, float),
        (None, float | None),
        (False, bool),
        ("auto", str | int),
        ([], list),
    ],
)
def test_numbers_and_what_may_be_something_else_pass(value: object, annotation: object) -> None:
    check_number("optim.lr", value, annotation)


@pytest.mark.parametrize("annotation", [Literal["blocks", "feed_forward"], Literal["blocks"] | None])
def test_a_word_that_is_no_choice_is_refused_with_the_nearest(annotation: object) -> None:
    check_number("target.read", "blocks", annotation)
    with pytest.raises(ConfigError, match=r"target\.read=block is no choice; did you mean blocks"):
        check_number("target.read", "block", annotation)


def test_null_and_words_beside_other_things_pass() -> None:
    check_number("a", None, Literal["x"] | None)
    check_number("a", "y", Literal["x"] | list)
    with pytest.raises(ConfigError, match="a=None"):
        check_number("a", None, Literal["x"])


@pytest.mark.parametrize("override", ["max_steps=many", "optim.lr=fast", "encoder.num_layers=two", "data.batch_s=x"])
def test_a_word_in_place_of_a_number_is_refused_by_its_key(override: str) -> None:
    config = resolved(compose("pretrain", ["experiment=best_rq_tiny", "data.shards=nowhere", override]))
    with pytest.raises(ConfigError, match=f"{override} is not what it can be"):
        check(config)
