import numpy as np
import pytest

from ossicle.core.errors import ConfigError
from ossicle.data import component as module
from ossicle.data.buckets import Pieces, Shapes
from ossicle.data.component import Component, Splitter
from tests.data.mixtures import source_of

SHAPES = Shapes((10, 20), (4, 2), Pieces(20, 10, 0.0))


def pairs(splitter: Splitter, found: Component, bucket: int) -> list[tuple[int, int]]:
    rows, pieces = splitter.items().rows_and_pieces(found.items[bucket])
    return sorted(zip(rows.tolist(), pieces.tolist(), strict=True))


def test_long_utterances_become_several_items_of_their_language_and_shard() -> None:
    rows = source_of([9, 15, 50, 20, 35], [2, 3], [0, 1, 1, 0, 1])
    splitter = Splitter(SHAPES, window_shards=1, num_rows=7)
    found = splitter.split(rows, "a", offset=2, languages=["xx", "yy", "zz"])
    assert list(found) == ["xx", "yy"]
    # 9 is too short; 50 makes three pieces of 16, 35 two of 17
    assert pairs(splitter, found["yy"], 0) == [(3, 0), (4, 0), (4, 1), (4, 2), (6, 0), (6, 1)]
    assert pairs(splitter, found["xx"], 1) == [(5, 0)]
    assert found["xx"].sizes == (0, 1)
    assert found["yy"].num_shards == 2


def test_items_of_two_sources_have_numbers_of_their_own() -> None:
    splitter = Splitter(SHAPES, window_shards=1, num_rows=4)
    first = splitter.split(source_of([50, 12], [2], [0, 0]), "a", offset=0)[""]
    second = splitter.split(source_of([45, 12], [2], [0, 0]), "b", offset=2)[""]
    assert pairs(splitter, first, 0) == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert pairs(splitter, second, 0) == [(2, 0), (2, 1), (2, 2), (3, 0)]
    assert len(set(np.concatenate([first.items[0], second.items[0]]).tolist())) == 8


def test_how_many_rows_are_looked_at_together_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = source_of(rng.integers(5, 90, 200).tolist(), [50, 1, 149], rng.integers(0, 3, 200).tolist())

    def split() -> list[list[tuple[int, int]]]:
        splitter = Splitter(SHAPES, window_shards=1, num_rows=200)
        found = splitter.split(rows, "a", languages=["x", "y", "z"])
        return [pairs(splitter, part, bucket) for part in found.values() for bucket in range(2)]

    whole = split()
    monkeypatch.setattr(module, "CHUNK", 7)
    assert split() == whole


def test_windows_are_of_the_shards_that_hold_something() -> None:
    shards = np.repeat(np.arange(0, 60, 3), 5)  # 20 of 60 shards
    part = Component("a", [np.arange(100, dtype=np.uint32)], [shards.astype(np.uint8)], window_shards=5)
    windows = part.windows(0, seed=1)
    assert np.bincount(windows.astype(int)).tolist() == [5, 5, 5, 5]
    order = part.order(0, 0, windows, seed=1)
    assert all(len(set(shards[stretch].tolist())) == 5 for stretch in order.reshape(4, 25))


def test_an_order_holds_each_item_once_and_changes_with_pass_bucket_seed_and_name() -> None:
    items = [np.arange(50, dtype=np.uint32), np.arange(50, 100, dtype=np.uint32)]
    shards = [np.zeros(50, dtype=np.uint8)] * 2

    def order(bucket: int = 0, number: int = 0, seed: int = 0, name: str = "a") -> list[int]:
        part = Component(name, items, shards, window_shards=1)
        return part.order(bucket, number, part.windows(number, seed), seed).tolist()

    assert sorted(order()) == list(range(50))
    assert order() == order()
    others = [order(number=1), order(seed=1), order(name="b"), [item - 50 for item in order(bucket=1)]]
    assert all(other != order() for other in others)


def test_the_windows_of_shards_change_with_pass_seed_and_name() -> None:
    def windows(number: int = 0, seed: int = 0, name: str = "a") -> list[int]:
        shards = np.arange(40, dtype=np.uint8)
        part = Component(name, [np.arange(40, dtype=np.uint32)], [shards], window_shards=4)
        return part.windows(number, seed).tolist()

    assert windows() == windows()
    assert all(other != windows() for other in (windows(number=1), windows(seed=1), windows(name="b")))


def test_a_window_of_no_shard_is_refused() -> None:
    with pytest.raises(ConfigError, match="window_shards=0"):
        Splitter(SHAPES, window_shards=0, num_rows=1).split(source_of([20], [1], [0]), "a")
