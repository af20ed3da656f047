from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError, DataError
from ossicle.core.files import hash_file
from ossicle.data.index import DatasetIndex
from ossicle.data.labels import LabelSet
from ossicle.launch.config import compose
from ossicle.launch.encoders import untrained_encoder
from ossicle.launch.experiment import resolved
from ossicle.launch.labels import (
    LabelRequest,
    auto_layer,
    check_labels,
    clock_of,
    criterion_of,
    device_of,
    features_of,
    folder_of,
    make,
    place_of,
)
from ossicle.launch.runs import write_state
from tests.launch.toy import TOY


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


def test_a_request_crosses_to_other_processes_whole(request_of: LabelRequest) -> None:
    full = replace(request_of, clock=FrameClock(400, 320), centroids=Path("x"), fit="minibatch")
    assert LabelRequest.from_json(full.to_json()) == replace(full, shards=str(full.shards))


def test_labels_keep_the_clock_of_the_model_that_they_are_for(synthetic_dataset: Path) -> None:
    for name in ("hubert_tiny", "hubert_base"):
        clock = clock_of(resolved(compose("pretrain", [f"experiment={name}", "data.shards=x"])))
        labels = features_of(LabelRequest(synthetic_dataset, "dev", "mfcc", clusters=8, clock=clock)).clock
        assert labels.agrees_with(clock)


def test_mfccs_on_a_clock_that_they_do_not_have_are_refused(synthetic_dataset: Path) -> None:
    request = LabelRequest(synthetic_dataset, "dev", "mfcc", clusters=8, clock=FrameClock(400, 250))
    with pytest.raises(ConfigError, match="no frames on the model's clock"):
        features_of(request)


@pytest.mark.parametrize(
    ("source", "words"), [("mel", "source=mel is unknown"), ("checkpoint", "needs a run and a layer")]
)
def test_a_request_that_cannot_be_carried_out_is_refused(source: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LabelRequest(Path("x"), "train", source, clusters=8)


def test_labels_of_shards_behind_a_url_need_a_folder() -> None:
    with pytest.raises(ConfigError, match="output="):
        folder_of(LabelRequest("s3://bucket/data", "train", "mfcc", clusters=8))


def test_a_process_computes_where_it_is_told() -> None:
    assert device_of("cpu") == torch.device("cpu")
    assert device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with an encoder as it stood before its first step."""
    directory = tmp_path_factory.mktemp("runs") / "toy"
    config = resolved(compose("pretrain", ["experiment=hubert_tiny", "data.shards=x", *TOY]))
    directory.mkdir()
    OmegaConf.save(OmegaConf.create(dict(config)), directory / "config.yaml")
    save_file(untrained_encoder(config).state_dict(), directory / "encoder.safetensors")
    write_state(directory, finished=True)
    return directory


def test_labels_of_a_checkpoint_are_traced_to_its_weights(request_of: LabelRequest, run: Path) -> None:
    request = replace(request_of, source="checkpoint", run=run, layer=1)
    place = make(request)
    card = LabelSet.load(place).card
    assert card.source["encoder"] == hash_file(run / "encoder.safetensors")
    assert card.source["layer"] == 1
    assert place_of(replace(request, layer=2)) != place
    with pytest.raises(ConfigError, match="has layers 0 to 2"):
        make(replace(request, layer=3))
    with pytest.raises(ConfigError, match="same clock"):
        make(replace(request, clock=FrameClock(400, 160)))


@pytest.mark.parametrize("name", ["pnmi", "abx"])
def test_a_layer_is_chosen_once(
    name: str, run: Path, synthetic_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = DatasetIndex.load(synthetic_dataset, "train")
    criterion = criterion_of(name, 20, 0)
    choice = auto_layer(run, index, criterion, tmp_path, seconds=30, seed=0)
    assert len(choice.scores) == 3
    assert choice.layer in range(3)
    monkeypatch.setattr("ossicle.launch.labels.trained_encoder", None)  # whoever extracts anything fails
    assert auto_layer(run, index, criterion, tmp_path, seconds=30, seed=0) == choice
    with pytest.raises(TypeError):
        auto_layer(run, index, criterion, tmp_path, seconds=31, seed=0)


def test_an_unknown_criterion_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose pnmi or abx"):
        criterion_of("wer", 20, 0)


def test_wrong_pairings_are_refused_before_anything_is_built(request_of: LabelRequest, synthetic_dataset: Path) -> None:
    place = make(request_of)

    def config(*more: str) -> dict:
        data = [f"data.shards={synthetic_dataset}", "data.split=dev", f"data.labels={place}"]
        return resolved(compose("pretrain", ["experiment=hubert_tiny", *data, *TOY, *more]))

    check_labels(config("target.num_classes=8"))
    with pytest.raises(ConfigError, match="have 8 classes and the target 500"):
        check_labels(config())
    with pytest.raises(ConfigError, match="covers"):
        check_labels(config("target.num_classes=8", "frontend.stack=1"))
    with pytest.raises(DataError, match="other data"):
        check_labels(config("target.num_classes=8", "data.split=train"))
    with pytest.raises(DataError, match="no finished labels"):
        check_labels(config(f"data.labels={place.parent}"))
    check_labels(config("data.labels=null"))
