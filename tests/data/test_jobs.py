from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override

from ossicle.core.errors import DataError
from ossicle.data.jobs import make_plan
from ossicle.data.names import checked_names, digest_name
from ossicle.data.utterance import Corpus, Sample, Source


@dataclass(frozen=True)
class Clip(Source):
    spans: tuple[tuple[float, float, str], ...] = ()
    end_s: float | None = None
    note: object = ""


class Clips(Corpus):
    name = "clips"

    def __init__(self, clips: list[Clip]) -> None:
        self.clips = clips

    @override
    def sources(self) -> Iterator[Source]:
        yield from self.clips

    @override
    def load(self, source: Source) -> Sample:
        raise AssertionError(source)


def clips(number: int, seconds: float = 1.0) -> list[Clip]:
    return [
        Clip(f"clip/{i}", ("train", "dev", "train")[i % 3], seconds, ((0.1, 0.25, "ʃ"),), None if i % 2 else i / 7)
        for i in range(number)
    ]


def test_a_plan_gives_back_every_source_as_it_was(tmp_path: Path) -> None:
    listed = [*clips(50), Clip("caf\udce9", "dev", 0.1)]
    plan = make_plan(Clips(listed), tmp_path, shard_s=4, audio_format="flac")
    read = [(job, sources) for job, sources in plan.with_sources(lambda _: True)]
    assert sorted((s for _, sources in read for s in sources), key=lambda s: s.name) == sorted(
        listed, key=lambda s: s.name
    )
    assert [job.place for job, _ in read] == list(range(plan.num_jobs))
    assert [job for job, _ in read] == list(plan.jobs())
    for split in ("train", "dev"):
        numbers = [job.number for job, _ in read if job.split == split]
        assert numbers == list(range(len(numbers)))
        in_order = [s for job, sources in read if job.split == split for s in sources]
        assert in_order == [clip for clip in listed if clip.split == split]
    assert plan.num_sources == len(listed)
    assert [path.name for path in tmp_path.iterdir()] == [f"{plan.fingerprint}.jsonl"]


def test_shards_are_filled_to_their_length_and_sources_without_one_do_not_fill_memory(tmp_path: Path) -> None:
    plan = make_plan(Clips(clips(60)), tmp_path, shard_s=4, audio_format="flac")
    sizes = [len(sources) for job, sources in plan.with_sources(lambda _: True) if job.split == "train"]
    assert sizes == [4] * 10
    plan = make_plan(
        Clips([Clip(str(i), "train", 0.0) for i in range(20_001)]), tmp_path, shard_s=4, audio_format="flac"
    )
    assert [len(sources) for _, sources in plan.with_sources(lambda _: True)] == [20_000, 1]


def test_fingerprints_follow_what_decides_the_bytes(tmp_path: Path) -> None:
    def fingerprints(corpus: Clips, audio_format: str = "flac") -> list[str]:
        return [job.fingerprint for job in make_plan(corpus, tmp_path, shard_s=4, audio_format=audio_format).jobs()]

    before = fingerprints(Clips(clips(24)))
    assert fingerprints(Clips(clips(24))) == before
    assert not set(fingerprints(Clips(clips(24)), "pcm")) & set(before)
    treated = Clips(clips(24))
    treated.treatment = "cut"
    assert not set(fingerprints(treated)) & set(before)
    changed = clips(24)
    changed[-1] = Clip("clip/23", "train", 1.0, end_s=9.0)
    assert sum(a != b for a, b in zip(before, fingerprints(Clips(changed)), strict=True)) == 1


def test_what_json_cannot_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a Clip holds what JSON does not"):
        make_plan(Clips([Clip("a", "train", 1.0, note={1, 2})]), tmp_path, shard_s=4, audio_format="flac")
    assert not list(tmp_path.iterdir())


def test_a_plan_of_sources_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    plan = make_plan(Clips(clips(3)), tmp_path, shard_s=4, audio_format="flac")
    plan.path.write_bytes(plan.path.read_bytes().replace(b".Clip", b".Clop"))
    with pytest.raises(DataError, match=r"sources of the kind .*Clop"):
        list(plan.with_sources(lambda _: True))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=3), max_size=60))
def test_names_that_come_twice_are_those_that_a_set_finds(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("names")
    with checked_names(folder) as check:
        for name in names:
            check.add(name)
        found = check.repeated()
    assert found == {digest_name(name) for name in names if names.count(name) > 1}
    assert not list(folder.iterdir())
