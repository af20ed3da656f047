from pathlib import Path

import pytest
import torch

from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError, DataError
from ossicle.target.kmeans import KMeansLabels

CLOCK = FrameClock().then(400, 320)


def batch_of(labels_BT: torch.Tensor | None, samples: int = 1_680) -> Batch:
    return Batch(torch.zeros(2, samples), 0, torch.zeros(2).long(), torch.zeros(2).long(), labels_BT)


def test_the_batchs_labels_are_the_classes() -> None:
    target = KMeansLabels(10, clock=CLOCK, feature_dim=512)
    labels_BT = torch.arange(10, dtype=torch.int16).reshape(2, 5)
    classes_BT = target(batch_of(labels_BT), CLOCK)
    assert classes_BT.dtype == torch.int64
    assert classes_BT.tolist() == labels_BT.tolist()
    assert target.num_classes == 10
    assert not list(target.parameters())


def test_data_without_labels_are_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="data have none") as caught:
        KMeansLabels(10, clock=CLOCK, feature_dim=512)(batch_of(None), CLOCK)
    assert "ossicle label" in caught.value.mend


def test_labels_that_are_not_one_a_frame_are_refused() -> None:
    target = KMeansLabels(10, clock=CLOCK, feature_dim=512)
    with pytest.raises(DataError, match="shape"):
        target(batch_of(torch.zeros(2, 4).long()), CLOCK)


def test_one_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_classes=1"):
        KMeansLabels(1, clock=CLOCK, feature_dim=512)


def test_the_config_names_this_class() -> None:
    text = (Path(__file__).parents[2] / "conf/target/kmeans.yaml").read_text()
    assert f"{KMeansLabels.__module__}.{KMeansLabels.__name__}" in text
