from pathlib import Path

import pytest

from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError
from ossicle.data.labels import LabelSet
from ossicle.launch.config import compose
from ossicle.launch.experiment import resolved
from ossicle.launch.labels import LabelRequest, clock_of, features_of, make, place_of


@pytest.fixture
def request_of(synthetic_dataset: Path, tmp_path: Path) -> LabelRequest:
    return LabelRequest(synthetic_dataset, "dev", "mfcc", clusters=8, output=tmp_path, sample_frames=2000)


def test_labels_lie_where_they_were_announced_and_are_made_once(request_of: LabelRequest) -> None:
    place = make(request_of)
    assert place == place_of(request_of)
    card = (place / "card.json").stat().st_mtime_ns
    assert make(request_of) == place
    assert (place / "card.json").stat().st_mtime_ns == card
    assert LabelSet.load(place).card.num_classes == 8


def test_labels_keep_the_clock_of_the_model_that_they_are_for(synthetic_dataset: Path) -> None:
    for name in ("hubert_tiny", "hubert_base"):
        clock = clock_of(resolved(compose("pretrain", [f"experiment={name}", "data.shards=x"])))
        _, labels = features_of(LabelRequest(synthetic_dataset, "dev", "mfcc", clusters=8, clock=clock))
        assert labels.agrees_with(clock)


def test_mfccs_on_a_clock_that_they_do_not_have_are_refused(synthetic_dataset: Path) -> None:
    request = LabelRequest(synthetic_dataset, "dev", "mfcc", clusters=8, clock=FrameClock(400, 250))
    with pytest.raises(ConfigError, match="no frames on the model's clock"):
        features_of(request)


@pytest.mark.parametrize(("source", "words"), [("mel", "source=mel is unknown"), ("layer", "needs a run and a layer")])
def test_a_request_that_cannot_be_carried_out_is_refused(source: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LabelRequest(Path("x"), "train", source, clusters=8)
