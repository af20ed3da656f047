"""A model of how long LibriSpeech's training utterances are: docs/results/batching.md says from what it is made."""

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 16_000
NUM_UTTERANCES = 281_241
QUANTILES = (0, 0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1)
SECONDS = (
    0.8, 1.82, 2.39, 3.82, 5.51, 9.32, 11.46, 13.24, 13.75, 14.32, 14.84, 15.26, 15.79, 16.1, 16.42, 16.66, 16.82,
    17.97, 29.9,
)  # fmt: skip


def librispeech_lengths(num_utterances: int = NUM_UTTERANCES) -> NDArray[np.int64]:
    """Lengths in samples, ascending, at even steps of the distribution."""
    places = (np.arange(num_utterances) + 0.5) / num_utterances
    return (np.interp(places, QUANTILES, SECONDS) * RATE_HZ).astype(np.int64)


def drawn_lengths(num_utterances: int, seed: int = 0) -> NDArray[np.int64]:
    """Lengths in samples, drawn at random."""
    draws = np.random.default_rng(seed).random(num_utterances)
    return (np.interp(draws, QUANTILES, SECONDS) * RATE_HZ).astype(np.int64)
