"""How well labels tell phones apart."""

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from ossicle.core.clock import FrameClock
from ossicle.core.errors import DataError
from ossicle.data.index import DatasetIndex
from ossicle.data.labels import LabelSet
from ossicle.data.utterance import Utterance

_LOOKED_AT = 20


def has_phones(index: DatasetIndex) -> bool:
    """Whether phones are known: one of the first utterances has some."""
    return any(index.read_meta(row).phones for row in range(min(_LOOKED_AT, index.num_utterances)))


def label_quality(label_set: LabelSet, index: DatasetIndex) -> dict[str, float]:
    """How labels and phones go together, over the frames of utterances that have phones.

    HuBERT, arXiv 2106.07447, section IV-D: with p(y, z) the joint frequency of phone y and label z, phone purity is the
    sum over z of max_y p(y, z), cluster purity the sum over y of max_z p(y, z), and PNMI is I(y; z) / H(y). A frame's
    phone is the one that covers its centre; frames of no phone do not count.

    Args:
        label_set: Labels of the split.
        index: The split.

    Returns:
        ``purity``, ``cluster_purity``, ``pnmi``, the labels' ``entropy`` in nats, and ``frames``, how many counted.

    Raises:
        DataError: The labels are of other data, or no frame has a phone.
    """
    label_set.check(index, label_set.card.clock)
    utterances = ((index.read_meta(row), label_set.utterance(row)) for row in range(index.num_utterances))
    joint = count_pairs(utterances, label_set.card.clock)
    if not joint:
        raise DataError(f"no frame of {index.path}, split {index.split!r}, has a phone", "prepare a corpus with phones")
    return agreement(table(joint, label_set.card.num_classes))


def count_pairs(
    utterances: Iterable[tuple[Utterance, NDArray[np.integer]]], clock: FrameClock
) -> Counter[tuple[str, int]]:
    """How often each phone meets each label.

    Args:
        utterances: With the labels of their frames, shape (T,).
        clock: The clock of the frames.
    """
    joint: Counter[tuple[str, int]] = Counter()
    for utterance, labels_T in utterances:
        joint.update(_pairs(utterance, labels_T, clock))
    return joint


def _pairs(utterance: Utterance, labels_T: NDArray[np.integer], clock: FrameClock) -> Iterator[tuple[str, int]]:
    phones = utterance.phones
    if not phones or len(labels_T) == 0:
        return
    centres_T = clock.centre_samples(0) + clock.stride_samples * np.arange(len(labels_T))
    starts, ends = np.array([phone.start for phone in phones]), np.array([phone.end for phone in phones])
    places_T = np.searchsorted(starts, centres_T, side="right") - 1
    inside_T = (places_T >= 0) & (centres_T < ends[places_T])
    for place, label in zip(places_T[inside_T].tolist(), labels_T[inside_T].tolist(), strict=True):
        yield phones[place].symbol, label


def table(joint: Counter[tuple[str, int]], num_classes: int) -> NDArray[np.float64]:
    """Counts of pairs as a table, phones by labels, shape (Y, V)."""
    symbols = {symbol: number for number, symbol in enumerate(sorted({symbol for symbol, _ in joint}))}
    counts_YV = np.zeros((len(symbols), num_classes))
    for (symbol, label), count in joint.items():
        counts_YV[symbols[symbol], label] = count
    return counts_YV


def agreement(counts_YV: NDArray[np.floating]) -> dict[str, float]:
    """Purities, PNMI and entropy of a table of counts, phones by labels: see :func:`label_quality`."""
    joint_YV = counts_YV / counts_YV.sum()
    phone_entropy, label_entropy = entropy_nats(joint_YV.sum(1)), entropy_nats(joint_YV.sum(0))
    information = phone_entropy + label_entropy - entropy_nats(joint_YV.ravel())
    return {
        "purity": float(joint_YV.max(0).sum()),
        "cluster_purity": float(joint_YV.max(1).sum()),
        "pnmi": information / phone_entropy if phone_entropy > 0 else 0.0,
        "entropy": label_entropy,
        "frames": float(counts_YV.sum()),
    }


def entropy_nats(share: NDArray[np.floating]) -> float:
    """Entropy in nats of probabilities that sum to one."""
    positive = share[share > 0]
    return float(-(positive * np.log(positive)).sum())
