"""Utterances and featurizers whose answers are known."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from typing_extensions import override

from ossicle.core.clock import FrameClock
from ossicle.core.seeds import generator, numpy_generator
from ossicle.data.utterance import Phone, Utterance
from ossicle.probe.collect import Clip
from ossicle.probe.features import Featurizer
from ossicle.probe.tasks import Splits

CLOCK = FrameClock(kernel_samples=320, stride_samples=320)
PHONES = ("_", "a", "b", "c", "d")
LANGUAGES = ("de", "fr")


def spoken_clip(name: str, split: str, speaker: int, *, phones: tuple[str, ...] = PHONES, frames: int = 40) -> Clip:
    """Sound that spells its phones: each frame's samples are the number of its phone, plus the speaker's offset."""
    rng = numpy_generator(0, "clip", split, name)
    numbers_T = np.repeat(rng.integers(len(phones), size=frames // 4), 4)
    timed = tuple(
        Phone(start * 320, (start + 4) * 320, phones[numbers_T[start]]) for start in range(0, len(numbers_T), 4)
    )
    language = LANGUAGES[speaker % 2]
    text = " ".join(phone.symbol for phone in timed)
    utterance = Utterance(f"{split}-{name}", split, language, f"{split}{speaker}", text, timed)
    all_numbers = np.array([PHONES.index(phones[n]) if phones[n] in PHONES else 9 for n in numbers_T])
    return Clip(utterance, np.repeat(all_numbers + speaker / 64, 320).astype(np.float32))


def spoken_splits(per_split: int = 24, *, dev: bool = True) -> Splits[tuple[Clip, ...]]:
    """Train, test and dev with four speakers each, two languages."""
    made = {
        split: tuple(spoken_clip(str(i), split, i % 4) for i in range(per_split)) for split in ("train", "test", "dev")
    }
    return Splits(made["train"], made["test"], made["dev"] if dev else None)


class PlantedFeatures(Featurizer):
    """Layers that know nothing (noise) but for one, which carries the phone and the speaker with a little noise."""

    clock = CLOCK

    def __init__(self, name: str, num_layers: int = 3, informative: int | None = 1, dim: int = 12) -> None:
        self.name = name
        self.layers = tuple(str(layer) for layer in range(num_layers))
        self.informative = informative
        self.phone_VD = torch.randn(len(PHONES) + 5, dim, generator=generator(0, 0, 0, "planted/phone"))
        self.speaker_VD = torch.randn(8, dim, generator=generator(0, 0, 0, "planted/speaker"))

    @override
    def extract(self, waveform_S: Tensor) -> Tensor:
        values_T = waveform_S[::320]
        phones_T = values_T.floor().long()
        speakers_T = ((values_T - values_T.floor()) * 64).round().long()
        seed = generator(0, 0, 0, f"{self.name} {values_T.tolist()}")
        frames_LTD = torch.randn(len(self.layers), len(values_T), self.phone_VD.shape[1], generator=seed)
        if self.informative is not None:
            signal_TD = 3 * self.phone_VD[phones_T] + self.speaker_VD[speakers_T]
            frames_LTD[self.informative] = signal_TD + 0.3 * frames_LTD[self.informative]
        return frames_LTD


@pytest.fixture
def clip() -> Callable[..., Clip]:
    return spoken_clip


@pytest.fixture
def splits() -> Callable[..., Splits[tuple[Clip, ...]]]:
    return spoken_splits


@pytest.fixture
def planted() -> type[PlantedFeatures]:
    return PlantedFeatures
