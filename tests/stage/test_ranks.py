import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ossicle.core.peers import Alone
from ossicle.data.index import DatasetIndex
from ossicle.data.labels import LabelSet

WORLDS = (1, 2, 3)


@pytest.fixture(scope="module")
def done(synthetic_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("ranks.py")
    command = [sys.executable, "-m", "tests.stage.ranks", str(synthetic_dataset), str(folder)]
    ran = subprocess.run(command, cwd=script.parents[2], capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stderr
    return folder


def said(folder: Path, name: str, rank: int) -> dict:
    return json.loads((folder / f"{name}-{rank}.json").read_text())


def labels_of(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def same_bytes(one: Path, other: Path) -> bool:
    names = sorted(file.name for file in one.glob("*.npy"))
    assert names == sorted(file.name for file in other.glob("*.npy"))
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


@pytest.mark.parametrize("world", WORLDS)
def test_peers_hear_each_other(done: Path, world: int) -> None:
    for rank in range(world):
        words = said(done, f"words-{world}", rank)
        assert words["total"] == [world * (world + 1) // 2, world * 10**15]
        assert words["gathered"] == [row for r in range(world) for row in np.arange(3 * r).reshape(-1, 3).tolist()]
        assert words["nothing"] == []
        assert words["told"] == {"by": world - 1}


def test_only_integers_are_summed(done: Path) -> None:
    assert said(done, "words-2", 0)["refused"]
    assert Alone().total(torch.tensor([3])).tolist() == [3]


@pytest.mark.parametrize("fit", ["lloyd", "minibatch"])
def test_any_number_of_ranks_finds_the_same_centroids_to_the_bit(done: Path, fit: str) -> None:
    found = [said(done, f"words-{world}", rank)[fit] for world in WORLDS for rank in range(world)]
    assert all(centroids == found[0] for centroids in found)


def test_any_number_of_ranks_writes_the_same_labels_to_the_byte(done: Path, synthetic_dataset: Path) -> None:
    alone = labels_of(done / "1")
    for world in WORLDS[1:]:
        assert same_bytes(alone, labels_of(done / f"{world}"))
        ours, theirs = LabelSet.load(alone).card, LabelSet.load(labels_of(done / f"{world}")).card
        assert (ours.inertia, ours.entropy_nats, ours.num_frames) == (
            theirs.inertia,
            theirs.entropy_nats,
            theirs.num_frames,
        )
        assert labels_of(done / f"{world}").name == alone.name
        shares = [said(done, f"world-{world}", rank)["utterances"] for rank in range(world)]
        assert sum(shares) == said(done, "world-1", 0)["utterances"]
        assert min(shares) > 0
    assert DatasetIndex.load(synthetic_dataset, "train").content_hash == LabelSet.load(alone).card.content_hash


def test_ranks_that_were_killed_are_followed_by_others_that_make_only_what_is_missing(done: Path) -> None:
    assert not (done / "killed-1.json").exists()  # it was killed
    assert same_bytes(labels_of(done / "1"), labels_of(done / "killed"))
    whole = said(done, "world-1", 0)["utterances"]
    again = sum(said(done, "resumed", rank)["utterances"] for rank in range(3))
    assert 0 < again < whole / 2
