"""Made-up mixtures without audio: what a plan is made of, and nothing else."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from ossicle.data.buckets import Pieces, Shapes
from ossicle.data.component import Splitter
from ossicle.data.mixture import heard_samples, passes_of, shares_of
from ossicle.data.plan import PlannedSequence

FIELDS = [("shard", "<u4"), ("samples", "<u8"), ("language", "<u2")]


@dataclass(frozen=True)
class Mixture:
    """All that decides a sequence; :meth:`sequence` makes it anew, as a resumed process does."""

    sources: tuple[np.ndarray, ...]
    languages: tuple[int, ...]
    weights: tuple[float, ...]
    alpha: float
    source_alpha: float
    shapes: Shapes
    seed: int
    window_shards: int

    def sequence(self) -> PlannedSequence:
        splitter = Splitter(self.shapes, window_shards=self.window_shards, num_rows=sum(map(len, self.sources)))
        offset, components, heard = 0, [], []
        for number, (rows, languages) in enumerate(zip(self.sources, self.languages, strict=True)):
            found = splitter.split(rows, f"s{number}", offset=offset, languages=[f"l{n}" for n in range(languages)])
            components.extend(found.values())
            heard.append(heard_samples(list(found.values()), self.shapes))
            offset += len(rows)
        shares = shares_of(heard, weights=self.weights, alpha=self.alpha, source_alpha=self.source_alpha)
        passes = passes_of(np.concatenate(heard), shares)
        return PlannedSequence(components, passes, splitter.items(), self.shapes, seed=self.seed)

    def samples(self) -> np.ndarray:
        return np.concatenate([rows["samples"] for rows in self.sources]).astype(np.int64)


def source_of(samples: list[int], sizes_of_shards: list[int], languages: list[int]) -> np.ndarray:
    rows = np.zeros(len(samples), dtype=FIELDS)
    rows["samples"] = samples
    rows["language"] = languages
    rows["shard"] = np.repeat(np.arange(len(sizes_of_shards)), sizes_of_shards)
    return rows


@st.composite
def uneven(draw: st.DrawFn, total: int) -> list[int]:
    """Sizes of shards that sum to a total: some hold one utterance, some most."""
    sizes: list[int] = []
    while total:
        sizes.append(min(total, draw(st.sampled_from((1, 2, 3, 7, 19)))))
        total -= sizes[-1]
    return sizes


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    sources, languages = [], []
    for _ in range(draw(st.integers(1, 3))):
        samples = [60, *draw(st.lists(st.integers(4, 150), min_size=2, max_size=40))]
        spoken = draw(st.integers(1, 3))
        codes = draw(st.lists(st.integers(0, spoken - 1), min_size=len(samples), max_size=len(samples)))
        sources.append(source_of(samples, draw(uneven(len(samples))), codes))
        languages.append(spoken)
    lengths = tuple(sorted({10, *draw(st.sets(st.integers(11, 55), max_size=3))}))
    pieces = draw(st.sampled_from((None, Pieces(lengths[-1], 10, 0.0), Pieces(lengths[-1], 10, 0.2))))
    return Mixture(
        tuple(sources),
        tuple(languages),
        tuple(draw(st.sampled_from((0.5, 1.0, 3.0))) for _ in sources),
        draw(st.sampled_from((0.0, 0.5, 1.0))),
        draw(st.sampled_from((0.0, 0.5, 1.0))),
        Shapes(lengths, tuple(draw(st.integers(1, 7)) for _ in lengths), pieces),
        draw(st.integers(0, 9)),
        draw(st.integers(1, 5)),
    )
