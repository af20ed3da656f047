from functools import partial

import numpy as np
import pytest
import torch
from scipy import signal

from ossicle.augmentation.response_source import DecayingResponses, RecordedResponses
from ossicle.augmentation.reverberation import Reverberation
from ossicle.core.errors import ConfigError
from tests.augmentation.conftest import CLOCK, make_batch


def rooms() -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    found = [torch.randn(n, generator=source) * 0.99 ** torch.arange(n) for n in (900, 300)]
    for number, room in enumerate(found):
        room[40 * number + 5] = 6.0
    return found


def test_each_row_is_scipys_convolution_with_one_of_the_recorded_rooms() -> None:
    part = Reverberation(
        CLOCK,
        responses=partial(RecordedResponses, recordings=lambda _: rooms(), length_s=0.05, lead_ms=0.25),
    )
    part.load(torch.device("cpu"))
    batch = make_batch(12)
    wet = part(batch, seed=0).waveform_BS.double().numpy()
    heard = []
    for dry, row in zip(batch.waveform_BS.double().numpy(), wet, strict=True):
        errors = []
        for number, room in enumerate(rooms()):
            direct = 40 * number + 5
            kept = room.double().numpy()[direct - 4 : direct - 4 + 800]
            expected = signal.fftconvolve(dry, kept)[4 : 4 + len(dry)]
            expected *= np.sqrt((dry**2).mean() / (expected**2).mean())
            errors.append(np.abs(row - expected).max())
        assert min(errors) < 1e-5
        heard.append(int(np.argmin(errors)))
    assert set(heard) == {0, 1}


def test_made_rooms_keep_level_and_time_and_differ_from_row_to_row() -> None:
    batch = make_batch(8)
    batch.waveform_BS.zero_()
    batch.waveform_BS[:, 1_234] = 1.0
    part = Reverberation(CLOCK, responses=partial(DecayingResponses, direct_db=(3.0, 12.0)))
    wet = part(batch, seed=0).waveform_BS
    assert wet.abs().argmax(1).tolist() == [1_234] * 8
    torch.testing.assert_close(wet.square().sum(1), torch.ones(8))
    assert float(wet[:, :1_234].abs().max()) < 1e-6  # nothing is heard before it is said
    assert len({round(float(row.max()), 4) for row in wet}) == 8


@pytest.mark.parametrize("numbers", [{"length_s": 0.0}, {"decay_s": (0.0, 1.0)}, {"gap_ms": 900.0}])
def test_rooms_that_cannot_be_are_refused_by_name(numbers: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(numbers))):
        DecayingResponses(16_000, **numbers)  # ty: ignore[invalid-argument-type]


def test_a_lead_longer_than_the_response_is_refused() -> None:
    with pytest.raises(ConfigError, match="lead_ms"):
        RecordedResponses(16_000, recordings=lambda _: rooms(), length_s=0.01, lead_ms=20.0)
