import pytest

from ossicle.core.errors import ConfigError
from ossicle.launch.binding import check_binding, targets

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
