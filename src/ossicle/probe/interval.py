"""Confidence intervals of error rates whose units come in utterances."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ossicle.core.seeds import numpy_generator


@dataclass(frozen=True, slots=True)
class Interval:
    """An error rate and its 95 % interval."""

    error: float
    low: float
    high: float


def bootstrap(
    errors_RU: NDArray[np.floating], counts_U: NDArray[np.floating], *, draws: int = 1000, seed: int = 0
) -> Interval:
    """Percentile bootstrap of a ratio: utterances are drawn with replacement, and so are the repeats.

    Frames of one utterance are not independent, so the utterance is what is drawn; several seeds (rows) are drawn
    beside it, so that the interval of a mean over seeds covers both sources.

    Args:
        errors_RU: Errors of every repeat in every utterance, shape (R, U).
        counts_U: Units (frames, phones, utterances) of every utterance, shape (U,).
        draws: Bootstrap samples.
        seed: Seed of the draws.
    """
    repeats, utterances = errors_RU.shape
    total = counts_U.sum()
    if total == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    rng = numpy_generator(seed, "bootstrap", repeats, utterances)
    weight_BU = rng.multinomial(utterances, np.full(utterances, 1 / utterances), size=draws).astype(np.float64)
    weight_BR = rng.multinomial(repeats, np.full(repeats, 1 / repeats), size=draws) / repeats
    errors_BR = weight_BU @ errors_RU.T.astype(np.float64)
    counts_B = weight_BU @ counts_U.astype(np.float64)
    drawn = counts_B > 0
    rates = (errors_BR * weight_BR).sum(1)[drawn] / counts_B[drawn]
    low, high = np.quantile(rates, [0.025, 0.975])
    error = float(errors_RU.sum() / (repeats * total))
    # where no utterance errs (or all of them do) there is nothing to draw from: Clopper and Pearson's exact bound
    unseen = 1 - 0.025 ** (1 / utterances)
    return Interval(error, 1 - unseen if error == 1 else float(low), unseen if error == 0 else float(high))
