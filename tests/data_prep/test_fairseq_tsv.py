from pathlib import Path

import pytest

from data_prep.fairseq_tsv import FairseqTsv
from ossicle.core.errors import DataError
from tests.data_prep.miniature import prepared, write_text, write_tone


def make(root: Path) -> Path:
    for name, seconds in (("a b/1.flac", 0.5), ("a b/2.flac", 0.75), ("c/3.flac", 1.0)):
        write_tone(root / "audio" / name, seconds)
    write_text(root / "lists" / "train.tsv", f"{root}/audio\na b/1.flac\t8000\na b/2.flac\t12000\n")
    write_text(root / "lists" / "valid.tsv", f"{root}/audio\nc/3.flac\t16000\n")
    return root / "lists"


def test_paths_splits_and_lengths_come_back(tmp_path: Path) -> None:
    corpus = FairseqTsv(make(tmp_path))
    result = prepared(corpus, tmp_path / "out")
    assert result.splits() == {"train": {"a b/1.flac", "a b/2.flac"}, "dev": {"c/3.flac"}}
    assert {source.name: source.seconds for source in corpus.sources()} == {
        name: result.seconds(name) for name in result.utterances
    }
    assert {meta.text for meta in result.utterances.values()} == {""}


@pytest.mark.parametrize(
    ("suffix", "lines", "texts"),
    [
        (".ltr", "H E L L O | Y O U |\n\n", ["HELLO YOU", ""]),
        (".wrd", "HELLO YOU\nAGAIN\n", ["HELLO YOU", "AGAIN"]),
        (".phn", "HH AH L OW\nY UW\n", ["HH AH L OW", "Y UW"]),
    ],
)
def test_texts_stand_beside_the_list(tmp_path: Path, suffix: str, lines: str, texts: list[str]) -> None:
    make(tmp_path)
    write_text(tmp_path / "lists" / f"train{suffix}", lines)
    sources = list(FairseqTsv(tmp_path / "lists" / "train.tsv").sources())
    assert [source.text for source in sources] == texts


def test_words_go_before_letters(tmp_path: Path) -> None:
    make(tmp_path)
    write_text(tmp_path / "lists" / "train.ltr", "A |\nB |\n")
    write_text(tmp_path / "lists" / "train.wrd", "A WORD\nBE\n")
    assert [s.text for s in FairseqTsv(tmp_path / "lists" / "train.tsv").sources()] == ["A WORD", "BE"]


@pytest.mark.parametrize(("lines", "what"), [("A\n", "fewer"), ("A\nB\nC\n", "more"), ("", "fewer")])
def test_texts_of_another_length_are_refused(tmp_path: Path, lines: str, what: str) -> None:
    write_text(make(tmp_path) / "train.wrd", lines)
    with pytest.raises(DataError, match=rf"train\.wrd has {what} lines than train\.tsv"):
        list(FairseqTsv(tmp_path / "lists").sources())


def test_bad_lines_are_named_and_the_others_kept(tmp_path: Path) -> None:
    make(tmp_path)
    write_text(tmp_path / "lists" / "train.tsv", f"{tmp_path}/audio\nno tab\nc/3.flac\t16000\ngone.flac\t9\n")
    result = prepared(FairseqTsv(tmp_path / "lists" / "train.tsv"), tmp_path / "out")
    assert set(result.utterances) == {"c/3.flac"}
    assert "line 2" in result.reasons["train.tsv (line 2)"]
    assert "line 4: there is no file" in result.reasons["gone.flac"]


def test_a_root_that_moved_can_be_stated(tmp_path: Path) -> None:
    lists = make(tmp_path)
    (tmp_path / "audio").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"says that its audio is in .*audio', which is no folder") as caught:
        list(FairseqTsv(lists).sources())
    assert "corpus.root=" in caught.value.mend
    assert not any(source.problem for source in FairseqTsv(lists, root=tmp_path / "elsewhere").sources())


def test_a_folder_without_lists_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \*\.tsv"):
        list(FairseqTsv(tmp_path).sources())
