"""k-means labels of a split: fitted on a sample of frames, assigned to all, streaming; only labels are written.

The labels of masked prediction (HuBERT, arXiv 2106.07447, section 3.1).
"""

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError
from ossicle.core.files import atomic_write, hash_file, hash_json
from ossicle.core.peers import Alone, Peers
from ossicle.data.index import DatasetIndex
from ossicle.data.labels import MAX_CLASSES, LabelCard, LabelSet, LabelWriter, is_finished
from ossicle.data.quarantine import Quarantine
from ossicle.ops.kmeans import Refine, assign, kmeans, lloyd, mini_batch
from ossicle.stage.frames import Features, packed_frames
from ossicle.stage.quality import entropy_nats
from ossicle.stage.sampling import draw_sample

FITS: Mapping[str, Refine] = {"lloyd": lloyd, "minibatch": mini_batch}

_CENTROIDS = "centroids.npy"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LabelRecipe:
    """All that decides a split's labels beside the split and the clock.

    Args:
        source: Names the features exactly.
        clusters: Clusters (K).
        sample_frames: Frames that the clusters are fitted on; all where the split has fewer.
        seed: Determines the sample and the clusters.
        fit: How clusters are fitted, a key of :data:`FITS`.
        centroids: A label set of the same features whose centroids are taken, and none fitted; None to fit.

    Raises:
        ConfigError: More clusters than labels can name or sampled frames there are, or no such fit.
    """

    source: Mapping[str, object]
    clusters: int
    sample_frames: int
    seed: int
    fit: str = "lloyd"
    centroids: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be carried out."""
        if not 1 < self.clusters <= MAX_CLASSES:
            raise ConfigError(
                f"clusters={self.clusters} is not in [2, {MAX_CLASSES}]", "labels are kept as 16-bit integers"
            )
        if self.sample_frames < self.clusters:
            raise ConfigError(
                f"sample_frames={self.sample_frames} cannot make {self.clusters} clusters", "sample more frames"
            )
        if self.fit not in FITS:
            raise ConfigError(f"fit={self.fit} is unknown", f"choose from: {', '.join(FITS)}")

    def clustering(self) -> dict[str, object]:
        """All that decides the centroids beside the data: how they are fitted, or the hash of those that are taken.

        Raises:
            ConfigError: The label set whose centroids are to be taken is of other features or another number of them.
        """
        if self.centroids is None:
            return {"sample_frames": self.sample_frames, "seed": self.seed, "fit": self.fit}
        card = LabelSet.load(self.centroids).card
        if dict(card.source) != dict(self.source) or card.num_classes != self.clusters:
            raise ConfigError(
                f"{self.centroids} has {card.num_classes} clusters of {dict(card.source)}, and {self.clusters} of"
                f" {dict(self.source)} are wanted",
                f"ask for the same features and clusters={card.num_classes}",
            )
        return {"centroids": hash_file(self.centroids / _CENTROIDS)}


def label_path(index: DatasetIndex, clock: FrameClock, out_root: Path, recipe: LabelRecipe) -> Path:
    """Where :func:`make_labels` puts labels: named by the hash of all that decides them."""
    everything = {
        "source": dict(recipe.source),
        "clusters": recipe.clusters,
        **recipe.clustering(),
        "clock": asdict(clock),
        "data": index.content_hash,
    }
    return Path(out_root) / f"{index.split}-{recipe.clusters}-{hash_json(everything)}"


@torch.no_grad()
def make_labels(
    index: DatasetIndex,
    features: Features,
    out_root: Path,
    recipe: LabelRecipe,
    *,
    peers: Peers | None = None,
    max_bad_fraction: float = 0.01,
) -> Path:
    """Cluster a split's frames and label every one. What is already there is not made again.

    Two passes: one over as few utterances as give the sample, one over all. Shard s belongs to rank s modulo the number
    of ranks, which decides nothing but the time. A killed run goes on at the shards that it was in; utterances that
    cannot be read have no labels and are named in ``quarantine.jsonl``.

    Args:
        index: The split.
        features: What is clustered.
        out_root: Labels go to a directory in here: see :func:`label_path`.
        recipe: How they are clustered.
        peers: The ranks that share the work, each of which calls this; None where there is one.
        max_bad_fraction: Share of unreadable utterances above which labelling stops.

    Returns:
        The directory, a :class:`~ossicle.data.labels.LabelSet`.

    Raises:
        ConfigError: Fewer frames than clusters, or frames off the clock.
        DataError: Too many utterances cannot be read, or features are not finite.
    """
    peers = peers or Alone()
    path = label_path(index, features.clock, out_root, recipe)
    if peers.told_by(0, is_finished(path)):
        return path
    began = time.perf_counter()
    centroids_VD = _fitted(path, index, features, recipe, peers)
    if peers.rank == 0:
        _LOG.info("%s: %d clusters fitted in %.1f s", path.name, recipe.clusters, time.perf_counter() - began)
    writer = LabelWriter(path, index)
    quarantine = Quarantine(path / "quarantine.jsonl", max_bad_fraction)
    for shard in range(peers.rank, writer.num_shards, peers.size):
        if not writer.has_shard(shard):
            _label_shard(writer, shard, index, features, centroids_VD=centroids_VD, quarantine=quarantine)
    peers.wait()
    if peers.rank == 0:
        card = _card(index, features, writer, recipe, dim=centroids_VD.shape[1])
        writer.finish(replace(card, seconds=round(time.perf_counter() - began, 3)))
    peers.wait()
    return path


def _fitted(path: Path, index: DatasetIndex, features: Features, recipe: LabelRecipe, peers: Peers) -> Tensor:
    """The centroids, float32, shape (V, D); read where an earlier, killed run has fitted them."""
    file = path / _CENTROIDS
    earlier = file if recipe.centroids is None or file.is_file() else recipe.centroids / _CENTROIDS
    found = peers.told_by(0, np.load(earlier, allow_pickle=False) if peers.rank == 0 and earlier.is_file() else None)
    if found is not None:
        if peers.rank == 0 and earlier != file:
            _write(file, found)
        return torch.from_numpy(found)
    sample_PD = draw_sample(features, index, recipe.sample_frames, recipe.seed, peers)
    fitted = kmeans(sample_PD, recipe.clusters, seed=recipe.seed, refine=FITS[recipe.fit], peers=peers)
    centroids_VD = peers.told_by(0, fitted.centroids_VD.cpu())
    if peers.rank == 0:
        _write(file, centroids_VD.numpy())
    return centroids_VD


def _write(file: Path, centroids_VD: NDArray[np.float32]) -> None:
    with atomic_write(file) as opened:
        np.save(opened, centroids_VD, allow_pickle=False)


def _label_shard(
    writer: LabelWriter,
    shard: int,
    index: DatasetIndex,
    features: Features,
    *,
    centroids_VD: Tensor,
    quarantine: Quarantine,
) -> None:
    rows = writer.rows_of(shard).tolist()
    labels: dict[int, NDArray[np.int16]] = {}
    inertia_sum = 0.0
    for packed in packed_frames(features, index, rows, quarantine):
        codes_P, distances_P = assign(packed.frames_PD, centroids_VD.to(packed.frames_PD.device))
        inertia_sum += float(distances_P.double().sum())
        parts = np.split(codes_P.to(torch.int16).cpu().numpy(), np.cumsum(packed.counts)[:-1])
        labels.update(zip(packed.rows, parts, strict=True))
    unlabelled = np.empty(0, dtype=np.int16)
    writer.write_shard(shard, [labels.get(row, unlabelled) for row in rows], inertia_sum)
    _LOG.info("%s: shard %d of %d labelled", writer.path.name, shard + 1, writer.num_shards)


def _card(index: DatasetIndex, features: Features, writer: LabelWriter, recipe: LabelRecipe, *, dim: int) -> LabelCard:
    counts_V = np.zeros(recipe.clusters, dtype=np.int64)
    inertia_sum = 0.0
    for shard in range(writer.num_shards):
        counts_V += np.bincount(writer.read_shard(shard), minlength=recipe.clusters)
        inertia_sum += writer.read_total(shard)
    num_frames = int(counts_V.sum())
    entropy = entropy_nats(counts_V / max(1, num_frames))
    return LabelCard(
        clock=features.clock,
        num_classes=recipe.clusters,
        source=dict(recipe.source),
        split=index.split,
        content_hash=index.content_hash,
        num_utterances=index.num_utterances,
        num_frames=num_frames,
        inertia=inertia_sum / max(1, num_frames),
        entropy_nats=entropy,
        perplexity=math.exp(entropy),
        dead_classes=int((counts_V == 0).sum()),
        seconds=0.0,
        details={**recipe.clustering(), "dim": dim},
    )
