"""Labels a dataset by several numbers of forked ranks, kills some, and goes on with others.

``python ranks.py DATASET FOLDER`` leaves label sets and FOLDER/<scenario>-<rank>.json with how many utterances each
rank extracted; nothing is computed before the forks.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from typing_extensions import override

from ossicle.core.peers import Alone, Connected, Peers
from ossicle.core.world import World
from ossicle.data.index import DatasetIndex
from ossicle.ops.kmeans import kmeans, mini_batch
from ossicle.stage.labelling import make_labels
from tests.stage.features import RECIPE, Counting

PATIENCE_S = 100


class Sensitive(Counting):
    """Features that depend a little on the batch that an utterance is in, as rounding makes them."""

    @override
    def __call__(self, waveform_BS: torch.Tensor, lengths_B: torch.Tensor | None) -> torch.Tensor:
        return super().__call__(waveform_BS, lengths_B) + 1e-3 * (waveform_BS.numel() % 97)


class Killed(Sensitive):
    """Ends its process without a word at its so-many-th utterance, shortly after its peers have done some more."""

    @override
    def __call__(self, waveform_BS: torch.Tensor, lengths_B: torch.Tensor | None) -> torch.Tensor:
        try:
            return super().__call__(waveform_BS, lengths_B)
        except KeyboardInterrupt:
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
            raise


def label(dataset: Path, out: Path, counting: Counting, peers: Peers) -> dict[str, object]:
    make_labels(DatasetIndex.load(dataset, "train"), counting.features(), out, RECIPE, peers=peers)
    return {"utterances": counting.utterances}


def speak(peers: Peers) -> dict[str, object]:
    """Every word that peers have, and the clusters that they find together."""
    own = torch.arange(3 * peers.rank, dtype=torch.int64).reshape(-1, 3)
    frames_ND = torch.randn(5_000, 6, generator=torch.Generator().manual_seed(0))
    found = {
        name: kmeans(frames_ND, 30, seed=0, refine=refine, peers=peers).centroids_VD.tolist()
        for name, refine in (("lloyd", None), ("minibatch", partial(mini_batch, batch_frames=1_000)))
    }
    peers.wait()
    try:
        refused = isinstance(peers.total(torch.ones(2)), str)
    except TypeError:
        refused = True
    return {
        "refused": refused,
        "total": peers.total(torch.tensor([peers.rank + 1, 10**15])).tolist(),
        "gathered": peers.gather(own).tolist(),
        "nothing": peers.gather(torch.zeros(0)).tolist(),
        "told": peers.told_by(peers.size - 1, {"by": peers.rank}),
        **found,
    }


def fork(folder: Path, name: str, job: Callable[[Peers], dict[str, object]], world: int) -> list[int]:
    children = []
    for rank in range(world):
        child = os.fork()
        if child:
            children.append(child)
            continue
        signal.alarm(PATIENCE_S)
        torch.set_num_threads(1)
        peers = Alone() if world == 1 else Connected.start(World(rank, world), f"file://{folder}/meeting-{name}")
        (folder / f"{name}-{rank}.json").write_text(json.dumps(job(peers)))
        os._exit(0)
    return children


def wait(children: list[int]) -> None:
    """Wait for all; when one is killed, kill the others, which wait for it."""
    left = set(children)
    while left:
        child, status = os.wait()
        left.discard(child)
        if os.WIFSIGNALED(status):
            for other in left:
                os.kill(other, signal.SIGKILL)


def main(dataset: Path, folder: Path) -> None:
    for world in (1, 2, 3):
        wait(fork(folder, f"words-{world}", speak, world))
        wait(
            fork(
                folder,
                f"world-{world}",
                lambda peers, w=world: label(dataset, folder / f"{w}", Sensitive(), peers),
                world,
            )
        )

    def killed(peers: Peers) -> dict[str, object]:
        everything = json.loads((folder / f"world-2-{peers.rank}.json").read_text())["utterances"]
        return label(dataset, folder / "killed", Killed(everything - 1 if peers.rank else None), peers)

    wait(fork(folder, "killed", killed, 2))
    wait(fork(folder, "resumed", lambda peers: label(dataset, folder / "killed", Sensitive(), peers), 3))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
