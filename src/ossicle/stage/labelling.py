"""k-means labels of a split: fitted on a sample of frames, assigned to all, streaming; only labels are written.

The labels of masked prediction (HuBERT, arXiv 2106.07447, section 3.1), and how well they tell phones apart.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError, DataError
from ossicle.core.files import atomic_write, hash_json
from ossicle.core.seeds import numpy_generator
from ossicle.data.index import DatasetIndex
from ossicle.data.labels import MAX_CLASSES, LabelCard, LabelSet, LabelWriter, is_finished
from ossicle.data.quarantine import Quarantine
from ossicle.data.utterances import decode_rows
from ossicle.ops.kmeans import assign, kmeans

Extract = Callable[[Tensor], Tensor]
"""Waveform, float32 on the CPU, shape (1, S), to frames on any device, shape (T, D), with T as the clock says."""

_CENTROIDS = "centroids.npy"
_SPREAD = 4  # a sample of 1 frame in n is taken from about 4 utterances in n, a quarter of each
_LOG = logging.getLogger(__name__)


def label_path(
    index: DatasetIndex,
    clock: FrameClock,
    out_root: Path,
    *,
    clusters: int,
    sample_frames: int,
    seed: int,
    source: Mapping[str, object],
) -> Path:
    """Where :func:`make_labels` puts the labels of the same arguments: named by the hash of all that decides them."""
    recipe = {
        "source": dict(source),
        "clock": asdict(clock),
        "data": index.content_hash,
        "clusters": clusters,
        "sample_frames": sample_frames,
        "seed": seed,
    }
    return Path(out_root) / f"{index.split}-{clusters}-{hash_json(recipe)}"


@torch.no_grad()
def make_labels(
    index: DatasetIndex,
    extract: Extract,
    clock: FrameClock,
    out_root: Path,
    *,
    clusters: int,
    sample_frames: int,
    seed: int,
    source: Mapping[str, object],
    max_bad_fraction: float = 0.01,
) -> Path:
    """Cluster a split's frames and label every one. What is already there is not made again.

    Two passes: one over as few utterances as give the sample, one over all. A killed run goes on at the shard that it
    was in; utterances that cannot be read have no labels and are named in ``quarantine.jsonl``.

    Args:
        index: The split.
        extract: Makes an utterance's frames: waveform (1, S) to (T, D).
        clock: The clock of those frames.
        out_root: Labels go to a directory in here: see :func:`label_path`.
        clusters: Clusters (K).
        sample_frames: Frames that the clusters are fitted on, about; all where the split has fewer.
        seed: Determines the sample and the clusters.
        source: Names the features exactly; part of the directory's hash and of the card.
        max_bad_fraction: Share of unreadable utterances above which labelling stops.

    Returns:
        The directory, a :class:`~ossicle.data.labels.LabelSet`.

    Raises:
        ConfigError: More clusters than labels can name or frames there are, or frames off the clock.
        DataError: Too many utterances cannot be read.
    """
    path = label_path(index, clock, out_root, clusters=clusters, sample_frames=sample_frames, seed=seed, source=source)
    if is_finished(path):
        return path
    if not 1 < clusters <= MAX_CLASSES:
        raise ConfigError(f"clusters={clusters} is not in [2, {MAX_CLASSES}]", "labels are kept as 16-bit integers")
    if sample_frames < clusters:
        raise ConfigError(f"sample_frames={sample_frames} cannot make {clusters} clusters", "sample more frames")
    began = time.perf_counter()
    centroids_VD = _fitted(path, index, extract, clock, clusters=clusters, sample_frames=sample_frames, seed=seed)
    _LOG.info("%s: %d clusters fitted in %.1f s", path.name, clusters, time.perf_counter() - began)
    writer = LabelWriter(path, index)
    quarantine = Quarantine(path / "quarantine.jsonl", max_bad_fraction)
    counts_V = np.zeros(clusters, dtype=np.int64)
    inertia_sum = 0.0
    for shard in range(writer.num_shards):
        if not writer.has_shard(shard):
            _label_shard(writer, shard, index, extract, clock, centroids_VD=centroids_VD, quarantine=quarantine)
        counts_V += np.bincount(writer.read_shard(shard), minlength=clusters)
        inertia_sum += writer.read_total(shard)
    details = {"seed": seed, "sample_frames": sample_frames, "dim": centroids_VD.shape[1]}
    card = _card(index, clock, counts_V, inertia_sum, source=source, details=details)
    writer.finish(replace(card, seconds=round(time.perf_counter() - began, 3)))
    return path


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
    joint: Counter[tuple[str, int]] = Counter()
    for row in range(index.num_utterances):
        phones = index.read_meta(row).phones
        labels_T = label_set.utterance(row)
        if not phones or len(labels_T) == 0:
            continue
        clock = label_set.card.clock
        centres_T = clock.centre_samples(0) + clock.stride_samples * np.arange(len(labels_T))
        starts, ends = np.array([phone.start for phone in phones]), np.array([phone.end for phone in phones])
        places_T = np.searchsorted(starts, centres_T, side="right") - 1
        inside_T = (places_T >= 0) & (centres_T < ends[places_T])
        pairs = zip(places_T[inside_T].tolist(), labels_T[inside_T].tolist(), strict=True)
        joint.update((phones[place].symbol, label) for place, label in pairs)
    if not joint:
        raise DataError(f"no frame of {index.path}, split {index.split!r}, has a phone", "prepare a corpus with phones")
    symbols = {symbol: number for number, symbol in enumerate(sorted({symbol for symbol, _ in joint}))}
    counts_YV = np.zeros((len(symbols), label_set.card.num_classes))
    for (symbol, label), count in joint.items():
        counts_YV[symbols[symbol], label] = count
    return agreement(counts_YV)


def agreement(counts_YV: NDArray[np.floating]) -> dict[str, float]:
    """Purities, PNMI and entropy of a table of counts, phones by labels: see :func:`label_quality`."""
    joint_YV = counts_YV / counts_YV.sum()
    phone_entropy, label_entropy = _entropy(joint_YV.sum(1)), _entropy(joint_YV.sum(0))
    information = phone_entropy + label_entropy - _entropy(joint_YV.ravel())
    return {
        "purity": float(joint_YV.max(0).sum()),
        "cluster_purity": float(joint_YV.max(1).sum()),
        "pnmi": information / phone_entropy if phone_entropy > 0 else 0.0,
        "entropy": label_entropy,
        "frames": float(counts_YV.sum()),
    }


def _fitted(
    path: Path,
    index: DatasetIndex,
    extract: Extract,
    clock: FrameClock,
    *,
    clusters: int,
    sample_frames: int,
    seed: int,
) -> Tensor:
    """The centroids, float32, shape (V, D); read where an earlier, killed run has fitted them."""
    file = path / _CENTROIDS
    if file.is_file():
        return torch.from_numpy(np.load(file, allow_pickle=False))
    sample_PD = _sample(index, extract, clock, sample_frames=sample_frames, seed=seed)
    centroids_VD = kmeans(sample_PD, clusters, seed=seed).centroids_VD.cpu()
    with atomic_write(file) as opened:
        np.save(opened, centroids_VD.numpy(), allow_pickle=False)
    return centroids_VD


def _sample(index: DatasetIndex, extract: Extract, clock: FrameClock, *, sample_frames: int, seed: int) -> Tensor:
    """About ``sample_frames`` frames, each drawn alike, from no more utterances than it takes."""
    frames_N = np.maximum(
        0, (index.rows["samples"].astype(np.int64) - clock.num_samples(1)) // clock.stride_samples + 1
    )
    share = sample_frames / max(1, int(frames_N.sum()))
    utterance_share = min(1.0, _SPREAD * share)
    frame_share = min(1.0, share / utterance_share)
    rows = np.flatnonzero(frames_N > 0)
    order = numpy_generator(seed, "label utterances").permutation(rows)
    drawn = np.sort(order[: math.ceil(utterance_share * len(rows))])
    kept: list[Tensor] = []
    # what is unreadable is named and counted when all utterances are labelled
    for row, wave_S in decode_rows(index, drawn.tolist(), Quarantine(None, 1.0)):
        if wave_S is None:
            continue
        frames_TD = _frames(extract, clock, wave_S)
        chosen_T = numpy_generator(seed, "label frames", row).random(len(frames_TD)) < frame_share
        kept.append(frames_TD[torch.from_numpy(np.flatnonzero(chosen_T)).to(frames_TD.device)])
    if not kept:
        raise DataError(f"{index.path}, split {index.split!r}, gives no frame to cluster", "prepare longer utterances")
    return torch.cat(kept)


def _label_shard(
    writer: LabelWriter,
    shard: int,
    index: DatasetIndex,
    extract: Extract,
    clock: FrameClock,
    *,
    centroids_VD: Tensor,
    quarantine: Quarantine,
) -> None:
    labels: list[NDArray[np.int64]] = []
    inertia_sum = 0.0
    for _, wave_S in decode_rows(index, writer.rows_of(shard).tolist(), quarantine):
        if wave_S is None or clock.num_frames(len(wave_S)) == 0:
            labels.append(np.empty(0, dtype=np.int64))
            continue
        frames_TD = _frames(extract, clock, wave_S)
        codes_T, distances_T = assign(frames_TD, centroids_VD.to(frames_TD.device))
        labels.append(codes_T.cpu().numpy())
        inertia_sum += float(distances_T.double().sum())
    writer.write_shard(shard, labels, inertia_sum)
    _LOG.info("%s: %d of %d shards labelled", writer.path.name, shard + 1, writer.num_shards)


def _frames(extract: Extract, clock: FrameClock, wave_S: NDArray[np.float32]) -> Tensor:
    frames_TD = extract(torch.from_numpy(wave_S)[None]).float()
    if frames_TD.ndim != 2 or len(frames_TD) != clock.num_frames(len(wave_S)):
        raise ConfigError(
            f"the features of {len(wave_S)} samples have shape {tuple(frames_TD.shape)}, and their clock says"
            f" {clock.num_frames(len(wave_S))} frames",
            "give the clock that the features are made on",
        )
    return frames_TD


def _card(
    index: DatasetIndex,
    clock: FrameClock,
    counts_V: NDArray[np.int64],
    inertia_sum: float,
    *,
    source: Mapping[str, object],
    details: Mapping[str, object],
) -> LabelCard:
    entropy = _entropy(counts_V / max(1, counts_V.sum()))
    return LabelCard(
        clock=clock,
        num_classes=len(counts_V),
        source=dict(source),
        split=index.split,
        content_hash=index.content_hash,
        num_utterances=index.num_utterances,
        num_frames=int(counts_V.sum()),
        inertia=inertia_sum / max(1, int(counts_V.sum())),
        entropy_nats=entropy,
        perplexity=math.exp(entropy),
        dead_classes=int((counts_V == 0).sum()),
        seconds=0.0,
        details=details,
    )


def _entropy(share: NDArray[np.floating]) -> float:
    """Entropy in nats of probabilities that sum to one."""
    positive = share[share > 0]
    return float(-(positive * np.log(positive)).sum())
