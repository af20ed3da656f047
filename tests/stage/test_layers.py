from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ossicle.core.errors import DataError
from ossicle.data.index import DatasetIndex
from ossicle.ops.spectral import mfcc
from ossicle.stage.frames import Features
from ossicle.stage.layers import Abx, Criterion, Pnmi, choose_layer
from tests.stage.features import CLOCK, real_frames

NUM_LAYERS = 3


@pytest.fixture
def index(synthetic_dataset: Path) -> DatasetIndex:
    return DatasetIndex.load(synthetic_dataset, "train")


def layers(waveform_BS: Tensor, lengths: Sequence[int]) -> Tensor:
    """MFCCs drowned in noise, MFCCs, and noise, side by side."""
    clean = real_frames(mfcc(waveform_BS, hop_ms=20, lengths_B=torch.tensor(lengths)), lengths)[:, :13]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(len(clean)))
    return torch.cat([clean + 30 * noise, clean, noise], -1)


FEATURES = Features(layers, CLOCK, batch_s=30)


@pytest.mark.parametrize("criterion", [Pnmi(clusters=40, seed=0), Abx(seed=0)])
def test_the_layer_that_knows_the_phones_is_chosen(criterion: Criterion, index: DatasetIndex) -> None:
    choice = choose_layer(index, FEATURES, NUM_LAYERS, criterion, seconds=60, seed=0)
    assert choice.layer == 1
    assert len(choice.scores) == NUM_LAYERS
    assert 50 < choice.seconds < 75
    values = [next(iter(found.values())) for found in choice.scores]
    if criterion.name == "pnmi":
        assert values[1] > 1.3 * values[0] > values[2]
        assert 0 < values[1] < 1
    else:
        assert values[1] < 0.3 < values[0] < values[2]
        assert values[2] == pytest.approx(0.5, abs=0.05)
        assert choice.scores[1]["within"] < choice.scores[1]["across"]
    assert choice.criterion["criterion"] == criterion.name


def test_clusters_are_judged_on_utterances_that_they_were_not_fitted_on(index: DatasetIndex) -> None:
    # as many clusters as frames would know every frame by heart
    many = choose_layer(index, FEATURES, NUM_LAYERS, Pnmi(clusters=10**4, seed=0), seconds=30, seed=0)
    assert many.scores[2]["pnmi"] < 0.6
    assert np.exp(many.scores[2]["entropy"]) < 10**3


def test_without_phones_the_user_is_told_what_to_state(index: DatasetIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ossicle.stage.layers.has_phones", lambda _: False)
    with pytest.raises(DataError, match=r"name a layer .* eval_shards="):
        choose_layer(index, FEATURES, NUM_LAYERS, Pnmi(40, 0), seconds=60, seed=0)
