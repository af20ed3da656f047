"""Which layer of an encoder makes the best labels, by a criterion that costs minutes: no model is trained."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from ossicle.core.clock import FrameClock
from ossicle.core.errors import DataError
from ossicle.data.index import DatasetIndex
from ossicle.data.quarantine import Quarantine
from ossicle.data.utterance import Utterance
from ossicle.ops.kmeans import assign, kmeans
from ossicle.stage.abx import AbxSetting, abx, tokens_of
from ossicle.stage.frames import Features, packed_frames
from ossicle.stage.quality import agreement, count_pairs, has_phones, table
from ossicle.stage.sampling import utterance_keys

_FRAMES_A_CLUSTER = 20
_MOST_TOKENS, _MOST_SPEAKERS = 4, 2  # layers are told apart by far fewer pairs than a result needs


@dataclass(frozen=True)
class Heard:
    """Frames of some utterances with what is known of these.

    Args:
        utterances: U of them.
        counts: Frames of each.
        frames_PLD: Every layer's frames, end to end, float32, shape (P, L, D).
        clock: The clock of the frames.
    """

    utterances: tuple[Utterance, ...]
    counts: tuple[int, ...]
    frames_PLD: Tensor
    clock: FrameClock


class Criterion(ABC):
    """A number by which layers are compared.

    Attributes:
        name: What the choice is called after.
    """

    name: str

    @abstractmethod
    def scores(self, heard: Heard, layer: int) -> dict[str, float]:
        """What is known of a layer; the first value decides."""

    @abstractmethod
    def best(self, first_values: Sequence[float]) -> int:
        """Which of the layers' first values is the best."""

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """All that decides the scores beside the frames."""


@final
class Pnmi(Criterion):
    """The labels' mutual information with phones over the phones' entropy (arXiv 2106.07447, section IV-D).

    Clusters are fitted on every other utterance and judged on those between, so that many clusters earn nothing by
    learning single frames by heart.

    Args:
        clusters: Clusters, fewer where there are not 20 frames for each.
        seed: Seeds them.
    """

    name = "pnmi"

    def __init__(self, clusters: int, seed: int) -> None:
        self.clusters = clusters
        self.seed = seed

    @override
    def scores(self, heard: Heard, layer: int) -> dict[str, float]:
        odd_P = torch.from_numpy(np.repeat(np.arange(len(heard.counts)) % 2 == 1, heard.counts))
        frames_PD = heard.frames_PLD[:, layer]
        fitted_PD = frames_PD[(~odd_P).to(frames_PD.device)]
        clusters = max(2, min(self.clusters, len(fitted_PD) // _FRAMES_A_CLUSTER))
        codes_P, _ = assign(frames_PD, kmeans(fitted_PD, clusters, seed=self.seed).centroids_VD)
        parts = np.split(codes_P.cpu().numpy(), np.cumsum(heard.counts)[:-1])
        judged = list(zip(heard.utterances, parts, strict=True))[1::2]
        joint = count_pairs(judged, heard.clock)
        if not joint:
            raise DataError("no frame has a phone", "give more audio with timed phones")
        found = agreement(table(joint, clusters))
        return {name: found[name] for name in ("pnmi", "purity", "cluster_purity", "entropy")}

    @override
    def best(self, first_values: Sequence[float]) -> int:
        return int(np.argmax(first_values))

    @override
    def describe(self) -> dict[str, object]:
        return {"criterion": self.name, "clusters": self.clusters, "seed": self.seed}


@final
class Abx(Criterion):
    """The ABX error of phones, within speakers and across them: :mod:`ossicle.stage.abx`. The error across decides.

    Args:
        any_context: Whether phones are compared without regard to their neighbours: with little audio few neighbours
            come twice.
        seed: Draws tokens where there are many.
    """

    name = "abx"

    def __init__(self, seed: int, *, any_context: bool = True) -> None:
        self.seed = seed
        self.any_context = any_context

    @override
    def scores(self, heard: Heard, layer: int) -> dict[str, float]:
        tokens = tokens_of(heard.utterances, heard.counts, heard.clock, any_context=self.any_context)
        frames_PD = heard.frames_PLD[:, layer]
        return {
            name: abx(frames_PD, tokens, self._setting(across=across)).error
            for name, across in (("across", True), ("within", False))
        }

    @override
    def best(self, first_values: Sequence[float]) -> int:
        return int(np.argmin(first_values))

    @override
    def describe(self) -> dict[str, object]:
        decided_by = asdict(self._setting(across=True))
        return {"criterion": self.name, **{key: decided_by[key] for key in decided_by if key != "across_speakers"}}

    def _setting(self, *, across: bool) -> AbxSetting:
        return AbxSetting(
            across_speakers=across,
            any_context=self.any_context,
            most_tokens=_MOST_TOKENS,
            most_speakers=_MOST_SPEAKERS,
            seed=self.seed,
        )


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """A layer and what it was chosen by.

    Args:
        layer: The best layer.
        scores: What is known of each layer, from 0.
        criterion: What it was chosen by.
        seconds: Audio that was listened to.
    """

    layer: int
    scores: tuple[dict[str, float], ...]
    criterion: dict[str, object]
    seconds: float


@torch.no_grad()
def choose_layer(
    index: DatasetIndex, features: Features, num_layers: int, criterion: Criterion, *, seconds: float, seed: int
) -> LayerChoice:
    """Score every layer on some utterances with phones, and take the best.

    Args:
        index: A split with phones.
        features: Every layer's frames side by side, shape (B, T, L * D).
        num_layers: Layers in them (L).
        criterion: What decides.
        seconds: Audio to listen to, about; all layers' frames of it lie in memory.
        seed: Draws the utterances.

    Raises:
        DataError: No phones are known, or too few to compare.
    """
    if not has_phones(index):
        raise DataError(
            f"{index.path}, split {index.split!r}, has no phones, and layer=auto compares layers by them",
            "name a layer (layer=6), or give a prepared dataset with phones: eval_shards=corpora/synthetic",
        )
    heard = _hear(index, features, num_layers, seconds, seed)
    scores = tuple(criterion.scores(heard, layer) for layer in range(num_layers))
    best = criterion.best([next(iter(found.values())) for found in scores])
    listened = sum(heard.counts) / features.clock.frames_per_s
    return LayerChoice(best, scores, criterion.describe(), round(listened, 1))


def _hear(index: DatasetIndex, features: Features, num_layers: int, seconds: float, seed: int) -> Heard:
    order_N = np.argsort(utterance_keys(seed, "layer utterances", index.num_utterances), kind="stable")
    ends_N = np.cumsum(index.rows["samples"][order_N].astype(np.int64))
    rows = order_N[: int(np.searchsorted(ends_N, seconds * index.rate_hz)) + 1]
    found: list[int] = []
    counts: list[int] = []
    frames: list[Tensor] = []
    for packed in packed_frames(features, index, rows.tolist(), Quarantine(None, 1.0)):
        found += packed.rows
        counts += packed.counts
        frames.append(packed.frames_PD.unflatten(1, (num_layers, -1)))
    if not frames:
        raise DataError(f"{index.path}, split {index.split!r}, gives no frame to compare layers by", "give more audio")
    utterances = tuple(index.read_meta(row) for row in found)
    return Heard(utterances, tuple(counts), torch.cat(frames), features.clock)
