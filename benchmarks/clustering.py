"""k-means of a split's frames, beside scikit-learn's and faiss's: inertia over all frames, and processor time.

    uv run --with faiss-cpu python benchmarks/clustering.py shards=corpora/synthetic clusters=100 out=clustering.json
    python benchmarks/clustering.py shards=corpora/synthetic run=runs/hubert_tiny/ID layer=3 frames=60000 clusters=500
    python benchmarks/clustering.py shards=corpora/synthetic what=sample frames=3000

Frames are MFCCs, or those of a run's layer. ``what=sample`` fits on samples of ``frames`` frames instead, drawn from
utterances that hold 4 and 16 times as many and from all, over four seeds. ``what=batches`` times how frames are made,
one utterance at a time and in padded batches of several lengths, over the first ten minutes.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans, MiniBatchKMeans
from torch import Tensor

from ossicle.core.peers import Alone
from ossicle.data.quarantine import Quarantine
from ossicle.launch.labels import LabelRequest, device_of, features_of, load_index
from ossicle.ops.kmeans import assign, kmeans
from ossicle.stage import sampling
from ossicle.stage.frames import num_frames, packed_frames
from ossicle.stage.labelling import FITS

EVERYTHING, SEEDS = 10**9, 4
BATCHES_S, HEARD_S = (0.001, 15.0, 30.0, 60.0, 120.0), 600  # no two utterances fit the first

Fit = Callable[[Tensor, int], NDArray[np.float32]]
"""Frames, shape (N, D), and a number of clusters, to centroids, shape (V, D)."""


def own(fit: str, x_ND: Tensor, clusters: int) -> NDArray[np.float32]:
    """What ``ossicle label`` does."""
    return kmeans(x_ND, clusters, seed=0, refine=FITS[fit]).centroids_VD.numpy()


def by_sklearn(model: Callable[..., KMeans | MiniBatchKMeans], x_ND: Tensor, clusters: int) -> NDArray[np.float32]:
    """scikit-learn's."""
    return model(clusters, random_state=0).fit(x_ND.numpy()).cluster_centers_.astype(np.float32)


def by_faiss(points: int | None, x_ND: Tensor, clusters: int) -> NDArray[np.float32]:
    """What faiss does with its own seed, over so many points a centroid, or None for its default."""
    import faiss  # noqa: PLC0415  a peer that may be absent

    faiss.omp_set_num_threads(1)
    most = {} if points is None else {"max_points_per_centroid": points}
    fitted = faiss.Kmeans(x_ND.shape[1], clusters, niter=20, **most)
    fitted.train(x_ND.numpy())
    return fitted.centroids


def systems(starts: int) -> Mapping[str, Fit]:
    """Every way to cluster, by its name."""
    return {
        "ossicle fit=lloyd": partial(own, "lloyd"),
        "ossicle fit=minibatch": partial(own, "minibatch"),
        "faiss, 256 points a centroid": partial(by_faiss, None),
        "faiss, all points": partial(by_faiss, EVERYTHING),
        "scikit-learn MiniBatchKMeans": partial(by_sklearn, partial(MiniBatchKMeans, batch_size=10_000, n_init=3)),
        f"scikit-learn KMeans, {starts} starts": partial(by_sklearn, partial(KMeans, n_init=starts)),
    }


def inertia(x_ND: Tensor, centroids_VD: NDArray[np.float32]) -> float:
    """Mean squared distance of a frame to its centroid."""
    return float(assign(x_ND, torch.from_numpy(centroids_VD))[1].double().mean())


def fitting(x_ND: Tensor, clusters: int, starts: int) -> list[dict[str, object]]:
    """Every system on the same frames."""
    records: list[dict[str, object]] = []
    for name, fit in systems(starts).items():
        start = time.process_time()
        try:
            centroids_VD = fit(x_ND, clusters)
        except ImportError as error:
            records.append({"system": name, "device": "cpu", "absent": str(error)})
        else:
            cpu_s, found = time.process_time() - start, inertia(x_ND, centroids_VD)
            records.append({"system": name, "device": "cpu", "clusters": clusters, "cpu_s": cpu_s, "inertia": found})
        print(records[-1])
    return records


def samples(request: LabelRequest, x_ND: Tensor, frames: int) -> list[dict[str, object]]:
    """How good clusters of a sample are, by how many utterances it is drawn from."""
    index, features = load_index(request), features_of(request, device_of("cpu"))
    sizes_N = num_frames(index, features.clock)
    records: list[dict[str, object]] = []
    for spread in (4, 16, EVERYTHING):
        sampling.SPREAD = spread
        read, found = [], []
        for seed in range(SEEDS):
            read.append(len(sampling.drawn_utterances(sizes_N, frames, seed)) / index.num_utterances)
            sample_PD = sampling.draw_sample(features, index, frames, seed, Alone())
            found.append(inertia(x_ND, kmeans(sample_PD, request.clusters, seed=seed).centroids_VD.numpy()))
        means = {"inertia": float(np.mean(found)), "deviation": float(np.std(found)), "read": float(np.mean(read))}
        records.append({"system": "ossicle", "device": "cpu", "frames": frames, "spread": spread, **means})
        print(records[-1])
    return records


def batches(request: LabelRequest) -> list[dict[str, object]]:
    """How fast frames are made, by the audio in a batch."""
    index = load_index(request)
    ends_N = np.cumsum(index.rows["samples"].astype(np.int64)) / index.rate_hz
    rows = list(range(int(np.searchsorted(ends_N, HEARD_S))))
    records: list[dict[str, object]] = []
    for batch_s in BATCHES_S:
        features = features_of(replace(request, batch_s=batch_s), device_of("cpu"))
        start = time.process_time()
        for _ in packed_frames(features, index, rows, Quarantine(None, 0.0)):
            pass
        rate = float(ends_N[len(rows) - 1]) / (time.process_time() - start)
        records.append({"system": "ossicle", "device": "cpu", "batch_s": batch_s, "audio_s_per_cpu_s": rate})
        print(records[-1])
    return records


def main(arguments: list[str]) -> None:
    """Measure, print, and write the records where ``out`` is given."""
    given = dict(argument.split("=", 1) for argument in arguments)
    torch.set_num_threads(1)
    source, clusters = "checkpoint" if "run" in given else "mfcc", int(given.get("clusters", "100"))
    run, layer = Path(given["run"]) if "run" in given else None, int(given.get("layer", "0"))
    request = LabelRequest(given["shards"], given.get("split", "train"), source, clusters, run=run, layer=layer)
    what, frames = given.get("what", "fit"), int(given.get("frames", EVERYTHING))
    if what == "batches":
        records = batches(request)
    else:
        wanted = frames if what == "fit" else EVERYTHING
        x_ND = sampling.draw_sample(features_of(request, device_of("cpu")), load_index(request), wanted, 0, Alone())
        print(f"{len(x_ND)} frames of {x_ND.shape[1]} dimensions, {request.clusters} clusters")
        starts = int(given.get("starts", "1"))
        records = fitting(x_ND, request.clusters, starts) if what == "fit" else samples(request, x_ND, frames)
    if "out" in given:
        Path(given["out"]).write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
