"""A sample of frames for clustering: drawn in one pass, in bounded memory, the same for any number of ranks.

Every frame has a key that depends on the seed, its utterance and its place alone; the sample is the frames of the
smallest keys. That is a uniform sample without replacement, two of them merge into the sample of both, and the order
in which frames come does not matter (bottom-k sampling: Cohen and Kaplan 2007, "Summarizing data using bottom-k
sketches").

Reading 960 hours for a thousandth of their frames would waste the pass. So utterances are drawn first, by keys of their
own, until they hold 16 times the frames that are asked for: a fiftieth of those hours. A sample of utterances costs
precision, because frames of one voice and sentence are alike; at one frame in 16 of each, that cost is small
(docs/results/labelling.md).
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ossicle.core.errors import DataError
from ossicle.core.peers import Peers
from ossicle.core.seeds import derive_seed
from ossicle.data.index import DatasetIndex
from ossicle.data.quarantine import Quarantine
from ossicle.stage.frames import Features, num_frames, packed_frames

SPREAD = 16  # utterances are drawn that hold so many times the frames of the sample
_FRAME_BITS = 24  # 93 hours at 50 frames a second
_SLACK = 1.25  # frames held before those of the largest keys are let go, over those that are wanted
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def frame_keys(seed: int, purpose: str, row: int, num: int) -> NDArray[np.int64]:
    """The keys of an utterance's frames, shape (num,): distinct for all frames of a dataset, in no order.

    Two rounds of a mixing function that maps 64 bits to 64 bits one to one (Steele, Lea and Flood 2014, "Fast
    splittable pseudorandom number generators", SplitMix64's finaliser), with the seed between them.
    """
    places = (np.uint64(row) << np.uint64(_FRAME_BITS)) | np.arange(num, dtype=np.uint64)
    return _mixed(_mixed(places) ^ np.uint64(derive_seed(seed, purpose))).view(np.int64)


def utterance_keys(seed: int, purpose: str, num: int) -> NDArray[np.int64]:
    """The keys of a dataset's utterances, shape (num,)."""
    return _mixed(_mixed(np.arange(num, dtype=np.uint64)) ^ np.uint64(derive_seed(seed, purpose))).view(np.int64)


def drawn_utterances(frames_N: NDArray[np.int64], sample_frames: int, seed: int) -> NDArray[np.int64]:
    """The utterances that a sample is taken from: those of the smallest keys that hold enough frames, ascending.

    Args:
        frames_N: Frames of every utterance, shape (N,).
        sample_frames: Frames of the sample.
        seed: Determines the choice.
    """
    order_N = np.argsort(utterance_keys(seed, "label utterances", len(frames_N)), kind="stable")
    order_N = order_N[frames_N[order_N] > 0]
    held_N = np.cumsum(frames_N[order_N])
    enough = int(np.searchsorted(held_N, SPREAD * sample_frames)) + 1
    return np.sort(order_N[:enough])


class Reservoir:
    """The frames of the smallest keys among all that were offered.

    Args:
        capacity: How many are kept (P). At most 2.25 times as many lie in memory, and those of one batch.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._keys: list[NDArray[np.int64]] = []
        self._frames: list[Tensor] = []
        self._held = 0
        self._bound = np.iinfo(np.int64).max

    def offer(self, keys_P: NDArray[np.int64], frames_PD: Tensor) -> None:
        """Keep what may belong to the sample.

        Args:
            keys_P: Distinct keys, shape (P,).
            frames_PD: Their frames, on any device, shape (P, D).
        """
        kept = np.flatnonzero(keys_P <= self._bound)
        self._keys.append(keys_P[kept])
        self._frames.append(frames_PD[torch.from_numpy(kept).to(frames_PD.device)].float().cpu())
        self._held += len(kept)
        if self._held > math.ceil(_SLACK * self.capacity):
            self._let_go()

    def sample(self, peers: Peers) -> tuple[NDArray[np.int64], Tensor]:
        """The sample over all ranks, on every rank: keys, ascending, shape (P,), and frames on the CPU, (P, D).

        Raises:
            DataError: No rank was offered a frame.
        """
        self._let_go()
        keys_P = np.sort(peers.gather(torch.from_numpy(self._all_keys())).numpy())[: self.capacity]
        if len(keys_P) == 0:
            raise DataError("there is no frame to cluster", "prepare longer utterances")
        own = self._all_keys() <= keys_P[-1]
        dims = peers.gather(torch.tensor([frames.shape[1] for frames in self._frames[:1]], dtype=torch.int64))
        empty = torch.zeros(0, int(dims[0]))
        frames_PD = peers.gather(torch.cat([empty, *self._frames])[torch.from_numpy(own)])
        order_P = np.argsort(peers.gather(torch.from_numpy(self._all_keys()[own])).numpy())
        return keys_P, frames_PD[torch.from_numpy(order_P)]

    def _all_keys(self) -> NDArray[np.int64]:
        return np.concatenate([np.zeros(0, np.int64), *self._keys])

    def _let_go(self) -> None:
        keys = self._all_keys()
        if len(keys) > self.capacity:
            kept = np.sort(np.argpartition(keys, self.capacity - 1)[: self.capacity])
            self._frames = [torch.cat(self._frames)[torch.from_numpy(kept)]]
            keys = keys[kept]
            self._bound = int(keys.max())
            self._keys = [keys]
            self._held = len(keys)


def draw_sample(features: Features, index: DatasetIndex, sample_frames: int, seed: int, peers: Peers) -> Tensor:
    """Frames to cluster: ``sample_frames`` of them, or all where there are fewer; the same on every rank.

    Args:
        features: What is made of the utterances.
        index: The split. A rank reads the drawn utterances of its own shards.
        sample_frames: Frames wanted (P). Unreadable utterances are drawn again nowhere: the others have frames enough.
        seed: Determines the sample.
        peers: The ranks that share the work.

    Returns:
        Float32, shape (P, D), in the order of their keys, on the device that the features are made on.

    Raises:
        DataError: There is no frame.
    """
    drawn = drawn_utterances(num_frames(index, features.clock), sample_frames, seed)
    shard_of = np.asarray(index.rows["shard"])[drawn]
    reservoir = Reservoir(sample_frames)
    # shard by shard, so that who shares a batch, and with it the last digit, does not depend on the ranks
    for shard in range(peers.rank, len(index.shard_paths), peers.size):
        rows = drawn[shard_of == shard].tolist()
        # what is unreadable is named and counted when all utterances are labelled
        for packed in packed_frames(features, index, rows, Quarantine(None, 1.0)):
            sizes = zip(packed.rows, packed.counts, strict=True)
            keys = [frame_keys(seed, "label frames", row, count) for row, count in sizes]
            reservoir.offer(np.concatenate(keys), packed.frames_PD)
    _, frames_PD = reservoir.sample(peers)
    return frames_PD.to(features.device)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    for shift, factor in _MIX:
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))
