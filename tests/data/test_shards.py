import errno
import io
import json
import tarfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from ossicle.core.errors import DataError
from ossicle.data.audio import encode_flac
from ossicle.data.shards import ShardWriter, digest_bytes, naming_full_disk, open_shard, remove_parts
from ossicle.data.utterance import Phone, Sample, Utterance

IDS = ["plain", "a.b.c", "../../etc/passwd", "/etc/passwd", "слово/слово", "x" * 300, "語" * 300, "", "a b\tc\n", "😀"]


def make_sample(name: str, num_samples: int = 3000) -> Sample:
    pcm = np.random.default_rng(len(name)).integers(-900, 900, num_samples, dtype=np.int16)
    return Sample(Utterance(name, "train", "de", "anna", "grüß Gott", (Phone(0, 100, "ʃ"),)), pcm)


def test_webdataset_reads_what_was_written(tmp_path: Path) -> None:
    samples = [make_sample(name) for name in IDS]
    with open_shard(tmp_path / "shard-000000.tar") as writer:
        for sample in samples:
            writer.write(sample)
    read = list(webdataset.WebDataset(str(tmp_path / "shard-000000.tar"), shardshuffle=False))
    assert [Utterance.from_json(entry["json"]) for entry in read] == [sample.utterance for sample in samples]
    assert [json.loads(entry["json"])["id"] for entry in read] == IDS
    assert [digest_bytes(entry["flac"]) for entry in read] == [member.digest for member in writer.members]


def test_a_shard_is_byte_for_byte_what_webdataset_s_writer_makes() -> None:
    ours, theirs = io.BytesIO(), io.BytesIO()
    writer = ShardWriter(ours)
    peer = webdataset.TarWriter(theirs, encoder=False, mtime=0, user="", group="")
    for sample in map(make_sample, IDS):
        writer.write(sample)
        audio = encode_flac(sample.pcm_S)
        peer.write({"__key__": sample.utterance.key, "flac": audio, "json": sample.utterance.to_json()})
    writer.close()
    peer.close()
    assert ours.getvalue() == theirs.getvalue()


def test_offsets_are_those_that_the_tar_says() -> None:
    file = io.BytesIO()
    writer = ShardWriter(file)
    for number, name in enumerate(IDS):
        writer.write(make_sample(name, 500 + 777 * number))
    writer.close()
    tar = tarfile.open(fileobj=io.BytesIO(file.getvalue()))  # noqa: SIM115  in memory
    told = [(m.audio_offset, m.audio_bytes, m.meta_offset, m.meta_bytes) for m in writer.members]
    members = tar.getmembers()
    found = [
        (audio.offset_data, audio.size, meta.offset_data, meta.size)
        for audio, meta in zip(members[::2], members[1::2], strict=True)
    ]
    assert told == found


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=400), st.text(max_size=400))
def test_keys_are_safe_and_distinct(first: str, second: str) -> None:
    key, other = Utterance(first, "train").key, Utterance(second, "train").key
    assert key.isascii()
    assert 16 <= len(key) <= 58
    assert set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
    assert (key == other) == (first == second)


@given(st.text(), st.text(), st.lists(st.tuples(st.integers(0, 9999), st.integers(0, 9999), st.text(max_size=4))))
def test_utterances_survive_json(name: str, text: str, phones: list[tuple[int, int, str]]) -> None:
    utterance = Utterance(name, "dev", "pl", "ewa", text, tuple(Phone(*phone) for phone in phones))
    assert Utterance.from_json(utterance.to_json()) == utterance


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    for number in range(2):
        with open_shard(tmp_path / f"{number}.tar") as writer:
            writer.write(make_sample("a"))
    assert (tmp_path / "0.tar").read_bytes() == (tmp_path / "1.tar").read_bytes()
    with tarfile.open(tmp_path / "0.tar") as tar:
        assert {member.mtime for member in tar} == {0}


def test_the_content_hash_covers_audio_and_metadata() -> None:
    def content_hash(sample: Sample) -> str:
        writer = ShardWriter(io.BytesIO())
        writer.write(sample)
        return writer.content_hash

    sample = make_sample("a")
    quieter = Sample(sample.utterance, sample.pcm_S // 2)
    renamed = Sample(Utterance("b", "train"), sample.pcm_S)
    assert len({content_hash(value) for value in (sample, quieter, renamed)}) == 3
    assert content_hash(sample) == content_hash(make_sample("a"))


class Interruption(BaseException):
    """Stands for a signal in the middle of a shard."""


def test_an_interrupted_shard_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with open_shard(tmp_path / "shard-000000.tar") as writer:
            writer.write(make_sample("a"))
            raise Interruption

    with pytest.raises(Interruption):
        write()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_while_writing_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the disk is not really full here: an injected file object refuses bytes as one would;
    # tests/data/test_prepare.py fills a real, tiny file system where mounting is allowed
    class FullFile(io.BytesIO):
        def write(self, data: bytes) -> int:
            if self.tell() + len(data) > 20_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    @contextmanager
    def full_write(path: Path) -> Generator[FullFile]:
        assert path.parent == tmp_path
        yield FullFile()

    monkeypatch.setattr("ossicle.data.shards.atomic_write", full_write)

    def write() -> None:
        with open_shard(tmp_path / "shard-000000.tar") as writer:
            for number in range(9):
                writer.write(make_sample(str(number)))

    with pytest.raises(DataError, match=r"disk is full: .*shard-000000\.tar") as caught:
        write()
    assert "run the same command again" in caught.value.mend


def test_other_errors_of_the_disk_stay_themselves(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), naming_full_disk(tmp_path):
        raise PermissionError(errno.EACCES, "no")


def test_parts_of_killed_writers_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".shard-000000.tar.abc.part").write_bytes(b"half")
    (tmp_path / "shard-000001.tar").write_bytes(b"whole")
    remove_parts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["shard-000001.tar"]
