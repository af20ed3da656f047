"""Corpora mixed with weights and temperature, planned like one corpus.

The shares are those of XLSR (arXiv 2006.13979, section 3: p_l in proportion to (n_l / N)^alpha over languages) on two
levels, in either order. With ``order`` sources, as in XLS-R and MMS (arXiv 2111.09296, 2305.13516): over sources, each
of which counts as one, and over the languages inside each. With languages, as in mHuBERT-147 (arXiv 2406.06371): over
the languages of all sources together, and over the sources that speak each. n is audio that one pass hears. A source's
weight multiplies its share.

An epoch of a mixture is as much audio as all its sources hold. Each component (one language of one source) is heard in
passes of its own, in which every utterance occurs exactly once, and makes share * total / n passes an epoch: more than
one where it is heard more often than it would be by nature, less where it is heard less often. With alpha and
source_alpha 1 and equal weights every component makes one pass, as if all were one corpus.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ossicle.core.errors import ConfigError
from ossicle.data.buckets import Shapes, length_histogram, pieces_of, shapes_of
from ossicle.data.cache import ShardCache
from ossicle.data.combined import CombinedIndex, CombinedLabels
from ossicle.data.component import Component, Splitter
from ossicle.data.index import DatasetIndex
from ossicle.data.labels import LabelSet
from ossicle.data.module import Heard, PlannedModule
from ossicle.data.plan import PlannedSequence
from ossicle.data.quarantine import Quarantine
from ossicle.data.store import Storage

_QUANTUM = 320

Order = Literal["sources", "languages"]
"""Which of the two levels of a mixture is shared out first."""


@dataclass(frozen=True, slots=True)
class Source:
    """One dataset of a mixture.

    Args:
        shards: Directory of a prepared dataset, or a URL of one.
        split: Split to train on.
        weight: Multiplies the source's share.
        labels: Directory of its labels, or None where the target needs none.
        storage: Options of its URL's file system, where it lies behind one.
    """

    shards: str | Path
    split: str = "train"
    weight: float = 1.0
    labels: str | Path | None = None
    storage: Storage | None = None

    @classmethod
    def of(cls, name: str, given: Mapping[str, object]) -> "Source":
        """A source as a config states it.

        Raises:
            ConfigError: A key is unknown, ``shards`` is missing, or the weight is not positive.
        """
        known = [field.name for field in fields(cls)]
        unknown = [key for key in given if key not in known]
        if unknown or "shards" not in given:
            problem = f"has no key {unknown[0]!r}" if unknown else "names no shards"
            raise ConfigError(f"data.sources.{name} {problem}", f"its keys are: {', '.join(known)}")
        source = cls(**given)  # ty: ignore[invalid-argument-type]  a config's values; the weight is checked below
        if not source.weight > 0:
            raise ConfigError(f"data.sources.{name}.weight={source.weight} is not positive", "leave the source out")
        return source


def shares_of(
    heard: Sequence[NDArray[np.floating]], *, weights: Sequence[float], alpha: float, source_alpha: float
) -> NDArray[np.float64]:
    """Share of the audio that each component gets: over languages inside a source, then over sources.

    Args:
        heard: For each source, the audio of each of its languages.
        weights: Weight of each source.
        alpha: Temperature over languages: 1 as they are, 0 all alike.
        source_alpha: Temperature over sources.

    Returns:
        Shares, source by source, that sum to one.
    """
    totals = np.asarray([part.sum() for part in heard], dtype=np.float64)
    sources = np.asarray(weights, dtype=np.float64) * (totals / totals.sum()) ** source_alpha
    parts = []
    for share, part, total in zip(sources / sources.sum(), heard, totals, strict=True):
        languages = (part / total) ** alpha
        parts.append(share * languages / languages.sum())
    return np.concatenate(parts)


def shares_by_language(
    heard: Sequence[NDArray[np.floating]],
    languages: Sequence[Sequence[str]],
    *,
    weights: Sequence[float],
    alpha: float,
    source_alpha: float,
) -> NDArray[np.float64]:
    """Share of the audio that each component gets: over all sources' languages, then over the sources of each.

    Args:
        heard: For each source, the audio of each of its languages.
        languages: Their names: one name is one language in all sources.
        weights: Weight of each source, inside each of its languages.
        alpha: Temperature over languages: 1 as they are, 0 all alike.
        source_alpha: Temperature over the sources of a language.

    Returns:
        Shares, source by source, that sum to one.
    """
    audio_N = np.concatenate(heard).astype(np.float64)
    weights_N = np.repeat(np.asarray(weights, dtype=np.float64), [len(part) for part in heard])
    named, language_N = np.unique([name for names in languages for name in names], return_inverse=True)
    totals_L = np.bincount(language_N, audio_N, len(named))
    wanted_L = (totals_L / totals_L.sum()) ** alpha
    parts_N = weights_N * (audio_N / totals_L[language_N]) ** source_alpha
    inside_N = parts_N / np.bincount(language_N, parts_N, len(named))[language_N]
    return (wanted_L / wanted_L.sum())[language_N] * inside_N


def passes_of(heard: NDArray[np.floating], shares: NDArray[np.floating]) -> list[float]:
    """Passes that each component makes in an epoch of as much audio as all components hold."""
    return (shares * heard.sum() / heard).tolist()


def heard_samples(components: Sequence[Component], shapes: Shapes) -> NDArray[np.float64]:
    """Samples that a pass over each component hears."""
    sizes_CK = np.asarray([component.sizes for component in components], dtype=np.float64)
    return sizes_CK @ np.asarray(shapes.lengths, dtype=np.float64)


class MixtureData(PlannedModule):
    """Splits of several prepared datasets as planned batches, each language of each source with its share.

    Args:
        sources: Datasets by name; each has the keys of :class:`Source`.
        alpha: Temperature over languages: 1 as they are, 0 all alike; XLSR takes 0.5.
        source_alpha: Temperature over sources, before their weights.
        order: Which comes first: ``sources``, then the languages of each, or ``languages``, then the sources of each.
        max_crop_s: Longest crop, in seconds.
        min_crop_s: Utterances shorter than this are left out, in seconds.
        num_shapes: Most static shapes that batches come in.
        batch_s: Audio in one batch of one rank, in seconds.
        max_cut: Share of an utterance that may be cut away before it is heard in one piece more.
        window_shards: Shards whose samples are shuffled together.
        workers: Processes of each rank that read.
        seed: Seeds the order and the crops.
        max_bad_fraction: Share of unreadable utterances above which training stops.
        quarantine: File that names what could not be read, or None.
        cache: Where shards behind URLs are kept on this machine; None for 20 GB in its temporary folder.

    Raises:
        ConfigError: A source is misspelt or holds nothing long enough, only some of them have labels, or the order is
            none.
    """

    def __init__(
        self,
        sources: Mapping[str, Mapping[str, object]],
        *,
        alpha: float,
        source_alpha: float,
        max_crop_s: float,
        min_crop_s: float,
        num_shapes: int,
        batch_s: float,
        window_shards: int,
        workers: int,
        seed: int,
        max_bad_fraction: float,
        max_cut: float = 1.0,
        order: Order = "sources",
        quarantine: str | Path | None = None,
        cache: ShardCache | None = None,
    ) -> None:
        stated = {name: Source.of(name, given) for name, given in sources.items()}
        index = CombinedIndex(
            {name: DatasetIndex.load(s.shards, s.split, cache, s.storage) for name, s in stated.items()}
        )
        pieces = pieces_of(
            max_crop_s=max_crop_s, min_crop_s=min_crop_s, max_cut=max_cut, quantum_samples=_QUANTUM,
            rate_hz=index.rate_hz,
        )  # fmt: skip
        temperature = _Temperature([s.weight for s in stated.values()], alpha, source_alpha, order)
        shapes = shapes_of(
            temperature.heard_lengths([
                length_histogram(
                    part.rows["samples"], pieces, _QUANTUM, part.rows["language"], max(1, len(part.languages))
                )
                for part in index.indexes
            ], [part.languages for part in index.indexes]),
            pieces, num_shapes=num_shapes, batch_s=batch_s, rate_hz=index.rate_hz,
        )  # fmt: skip
        splitter = Splitter(shapes, window_shards=window_shards, num_rows=index.num_utterances)
        split = {
            name: splitter.split(part.rows, name, offset=int(offset), languages=part.languages)
            for (name, part), offset in zip(index.sources.items(), index.offsets, strict=False)
        }
        for name, found in split.items():
            if not found:
                raise ConfigError(f"no utterance of data.sources.{name} fills the shortest crop", "leave it out")
        shares, passes = temperature.shares_and_passes(list(split.values()), shapes)
        components = [component for found in split.values() for component in found.values()]
        names = [(name, language) for name, found in split.items() for language in found]
        super().__init__(
            index,
            _labels(stated, index),
            shapes,
            PlannedSequence(components, passes, splitter.items(), shapes, seed=seed),
            heard=Heard(names, index, wanted=shares.tolist()),
            seed=seed,
            workers=workers,
            quarantine=Quarantine(None if quarantine is None else Path(quarantine), max_bad_fraction),
        )


@dataclass(frozen=True, slots=True)
class _Temperature:
    """How the sources of a mixture are weighed."""

    weights: Sequence[float]
    alpha: float
    source_alpha: float
    order: Order

    def __post_init__(self) -> None:
        if self.order not in {"sources", "languages"}:
            raise ConfigError(f"data.order={self.order} is unknown", "choose sources or languages")

    def heard_lengths(
        self, histograms: Sequence[NDArray[np.int64]], languages: Sequence[Sequence[str]]
    ) -> NDArray[np.float64]:
        """How many pieces of each length an epoch hears, from each source's counts by language and length."""
        lengths = np.arange(histograms[0].shape[1], dtype=np.float64)
        present = [np.flatnonzero(counts @ lengths > 0) for counts in histograms]
        if not all(len(rows) for rows in present):
            return np.zeros(len(lengths))
        kept = [counts[rows] for counts, rows in zip(histograms, present, strict=True)]
        audio = [counts @ lengths for counts in kept]
        names = [
            [part[row] if part else "" for row in rows.tolist()] for part, rows in zip(languages, present, strict=True)
        ]
        return np.asarray(passes_of(np.concatenate(audio), self._shares(audio, names))) @ np.concatenate(kept)

    def shares_and_passes(
        self, components: Sequence[Mapping[str, Component]], shapes: Shapes
    ) -> tuple[NDArray[np.float64], list[float]]:
        """Share of each component and its passes an epoch, source by source."""
        heard = [heard_samples(list(parts.values()), shapes) for parts in components]
        shares = self._shares(heard, [list(parts) for parts in components])
        return shares, passes_of(np.concatenate(heard), shares)

    def _shares(self, heard: Sequence[NDArray[np.floating]], languages: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        if self.order == "sources":
            return shares_of(heard, weights=self.weights, alpha=self.alpha, source_alpha=self.source_alpha)
        return shares_by_language(
            heard, languages, weights=self.weights, alpha=self.alpha, source_alpha=self.source_alpha
        )


def _labels(sources: Mapping[str, Source], index: CombinedIndex) -> CombinedLabels | None:
    without = [name for name, source in sources.items() if source.labels is None]
    if len(without) == len(sources):
        return None
    if without:
        raise ConfigError(
            f"data.sources.{without[0]} has no labels and others have", "state labels for every source, or for none"
        )
    return CombinedLabels([LabelSet.load(s.labels) for s in sources.values() if s.labels is not None], index.offsets)
