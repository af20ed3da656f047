import gc
import json
import tempfile
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from data_prep.disk_table import DiskTable
from data_prep.folder import FolderCorpus
from data_prep.hf_datasets import HfDatasets
from data_prep.kaldi import Kaldi
from data_prep.lhotse import Lhotse
from data_prep.manifests import Manifests
from tests.data_prep.miniature import write_text

NAMES = st.text(st.characters(codec=None), max_size=4)


@hypothesis.given(st.lists(st.tuples(NAMES, st.integers() | NAMES)), st.lists(st.tuples(NAMES, st.integers())))
def test_it_is_a_dictionary_of_lists(first: list[tuple[str, object]], later: list[tuple[str, int]]) -> None:
    wanted: defaultdict[str, list[object]] = defaultdict(list)
    with DiskTable(first) as table:
        for key, value in first:
            wanted[key].append(value)
        for key, value in later:
            table.add(key, value)
            wanted[key].append(value)
        assert {key: table.all(key) for key in wanted} == wanted
        assert {key: table.last(key) for key in wanted} == {key: values[-1] for key, values in wanted.items()}
        assert all(key in table for key in wanted)
        assert "another key" not in table
        assert table.all("another key") == []
        assert table.last("another key", 7) == 7


def test_nothing_is_left_on_the_disk_also_where_rows_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def broken() -> Iterator[tuple[str, object]]:
        yield "a", 1
        raise ValueError("no row")

    with DiskTable([("a", 1)]) as table:
        assert table.last("a") == 1
        assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match="no row"):
        DiskTable(broken())
    assert list(tmp_path.iterdir()) == []


def manifest_of(root: Path, number: int) -> FolderCorpus:
    write_text(root / "manifest.tsv", "path\ttext\n" + "".join(f"{n:06d}.wav\tsaid {n}\n" for n in range(number)))
    phones = "".join(f"{n:06d}.wav\t0\t1\ta\n{n:06d}.wav\t1\t2\tb\n" for n in range(number))
    write_text(root / "phones.tsv", "path\tstart_s\tend_s\tphone\n" + phones)
    return FolderCorpus(root)


def kaldi_of(root: Path, number: int) -> Kaldi:
    for file, line in (("wav.scp", "u{0:06d} {0:06d}.wav"), ("utt2spk", "u{0:06d} s{0:06d}"), ("text", "u{0:06d} a b")):
        write_text(root / file, "".join(line.format(n) + "\n" for n in range(number)))
    write_text(root / "segments", "".join(f"u{n:06d} u{n:06d} 0 1\n" for n in range(number)))
    return Kaldi(root)


def lhotse_of(root: Path, number: int) -> Lhotse:
    source = {"sources": [{"type": "file", "channels": [0], "source": "none.wav"}], "duration": 1.0}
    recordings = [json.dumps({"id": f"r{n:06d}", **source}) for n in range(number)]
    said = [
        json.dumps({"id": f"s{n:06d}", "recording_id": f"r{n:06d}", "start": 0, "duration": 1}) for n in range(number)
    ]
    write_text(root / "recordings_train.jsonl", "\n".join(recordings))
    write_text(root / "supervisions_train.jsonl", "\n".join(said))
    return Lhotse(root)


def hugging_face_of(root: Path, number: int) -> HfDatasets:
    for n in range(number):
        file = root / "train" / f"{n // 100}" / f"{n:06d}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return HfDatasets(root)


@pytest.mark.parametrize("make", [manifest_of, kaldi_of, lhotse_of, hugging_face_of])
def test_memory_does_not_grow_with_what_is_listed(
    make: Callable[[Path, int], Manifests | FolderCorpus], tmp_path: Path
) -> None:
    number = 4_000
    corpus = make(tmp_path, number)
    tracemalloc.start()
    for place, _ in enumerate(corpus.sources()):
        if place == number - 10:
            gc.collect()
            held = tracemalloc.take_snapshot()
    tracemalloc.stop()
    # of what the corpora allocate themselves: pathlib's interned names lie in a table of the interpreter's own
    ours = held.filter_traces([tracemalloc.Filter(True, "*data_prep/*")])
    assert sum(trace.size for trace in ours.statistics("filename")) < number * 30  # a name alone takes more than 60
