from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ossicle.data.audio import decode
from ossicle.data.index import DatasetIndex
from ossicle.data.quarantine import Quarantine
from ossicle.launch.config import compose
from ossicle.launch.encoders import untrained_encoder
from ossicle.launch.experiment import resolved
from ossicle.launch.labels import _layers
from ossicle.stage.frames import Features, packed_frames
from tests.launch.toy import TOY
from tests.stage.features import FEATURES, alone


@pytest.fixture
def index(synthetic_dataset: Path) -> DatasetIndex:
    return DatasetIndex.load(synthetic_dataset, "dev")


def by_row(features: Features, index: DatasetIndex) -> dict[int, torch.Tensor]:
    found: dict[int, torch.Tensor] = {}
    for packed in packed_frames(features, index, range(index.num_utterances), Quarantine(None, 0.0)):
        found.update(zip(packed.rows, packed.frames_PD.split(packed.counts), strict=True))
    return found


def test_padded_batches_of_mfccs_equal_utterances_alone(index: DatasetIndex) -> None:
    batched = by_row(replace(FEATURES, batch_s=40, threads=3), index)
    assert sorted(batched) == list(range(index.num_utterances))
    for row, frames_TD in batched.items():
        expected = alone(torch.from_numpy(decode(index.read_audio(row))))
        torch.testing.assert_close(frames_TD, expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["hubert_tiny", "hubert_base"])
def test_packed_batches_through_an_encoder_equal_utterances_alone(name: str, index: DatasetIndex) -> None:
    config = resolved(compose("pretrain", [f"experiment={name}", "data.shards=x", *TOY]))
    if "convolutions" in config["frontend"]:
        config["frontend"]["convolutions"] = [[16, k, s] for _, k, s in config["frontend"]["convolutions"]]
    model = untrained_encoder(config)
    batched = by_row(_layers(model, slice(1, 2), 40, torch.device("cpu")), index)
    one_by_one = by_row(_layers(model, slice(1, 2), 1e-3, torch.device("cpu")), index)
    for row, frames_TD in one_by_one.items():
        torch.testing.assert_close(batched[row], frames_TD, atol=1e-4, rtol=1e-4)
        assert float(frames_TD.std()) > 0.01


def test_a_batch_holds_no_more_audio_than_allowed_and_like_lengths(synthetic_dataset: Path) -> None:
    index = DatasetIndex.load(synthetic_dataset, "train")
    shapes: list[tuple[int, int]] = []

    def watch(waveform_BS: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        shapes.append((waveform_BS.shape[0], waveform_BS.shape[1]))
        return FEATURES.extract(waveform_BS, lengths)

    by_row(replace(FEATURES, extract=watch, batch_s=30), index)
    assert all(rows * samples <= 30 * 16_000 or rows == 1 for rows, samples in shapes)
    assert [samples for _, samples in shapes] == sorted((samples for _, samples in shapes), reverse=True)
    real = int(index.rows["samples"].sum())
    assert real / sum(rows * samples for rows, samples in shapes) > 0.8
    assert len(shapes) < index.num_utterances / 2


def test_utterances_shorter_than_a_frame_give_none(index: DatasetIndex) -> None:
    wide = replace(FEATURES.clock, kernel_samples=10**9)
    assert by_row(replace(FEATURES, clock=wide), index) == {}
    assert np.all(index.rows["samples"] > 0)
