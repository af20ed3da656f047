from pathlib import Path

import pytest
from torchaudio.datasets import LIBRISPEECH

from data_prep.librispeech import LibriSpeech
from ossicle.core.errors import ConfigError, DataError
from tests.data_prep.miniature import prepared, write_text, write_tone

CHAPTERS = {
    "train-clean-100/103/1240": {"103-1240-0000": "CHAPTER ONE", "103-1240-0001": "THAT HAD ITS SOURCE"},
    "train-clean-100/1034/121119": {"1034-121119-0000": "THE SNOW WAS DEEP"},
    "train-other-500/20/205": {"20-205-0000": "MISTER JUSTICE"},
    "dev-clean/1272/128104": {"1272-128104-0000": "MISTER QUILTER", "1272-128104-0001": "NOR IS HIS MANNER"},
    "test-other/367/130732": {"367-130732-0000": "LOBSTERS AND LOBSTERS"},
}


def make(root: Path) -> Path:
    for place, texts in CHAPTERS.items():
        folder = root / "LibriSpeech" / place
        reader, chapter = place.split("/")[1:]
        write_text(
            folder / f"{reader}-{chapter}.trans.txt", "".join(f"{name} {text}\n" for name, text in texts.items())
        )
        for number, name in enumerate(texts):
            write_tone(folder / f"{name}.flac", 0.5 + 0.25 * number)
    write_text(root / "LibriSpeech" / "SPEAKERS.TXT", "; ID | SEX | SUBSET\n103 | F | train-clean-100 | 25.19 | A B\n")
    write_text(root / "LibriSpeech" / "README.TXT", "LibriSpeech")
    return root


def test_readers_texts_splits_and_lengths_come_back(tmp_path: Path) -> None:
    result = prepared(LibriSpeech(make(tmp_path / "in")), tmp_path / "out")
    assert result.splits() == {
        "train": {"103-1240-0000", "103-1240-0001", "1034-121119-0000", "20-205-0000"},
        "dev-clean": {"1272-128104-0000", "1272-128104-0001"},
        "test-other": {"367-130732-0000"},
    }
    said = result.utterances["1272-128104-0001"]
    assert (said.speaker, said.language, said.text) == ("1272", "en", "NOR IS HIS MANNER")
    assert result.seconds("1272-128104-0001") == 0.75
    assert result.reasons == {}
    assert result.summary.splits["train"].num_speakers == 3


def test_files_and_texts_are_those_that_torchaudio_lists(tmp_path: Path) -> None:
    make(tmp_path)
    for part in ("train-clean-100", "dev-clean"):
        theirs = LIBRISPEECH(tmp_path, url=part)
        listed = [theirs.get_metadata(number) for number in range(len(theirs))]
        ours = {source.path: source for source in LibriSpeech(tmp_path, [part]).sources()}
        assert {path: (source.text, int(source.speaker)) for path, source in ours.items()} == {
            f"LibriSpeech/{path}": (text, speaker) for path, _, text, speaker, _, _ in listed
        }


def test_parts_are_chosen_and_the_inner_folder_serves_too(tmp_path: Path) -> None:
    make(tmp_path)
    chosen = LibriSpeech(tmp_path / "LibriSpeech", ["test-other", "train-other-500"])
    assert [source.name for source in chosen.sources()] == ["20-205-0000", "367-130732-0000"]
    with pytest.raises(ConfigError, match="names no part of the corpus"):
        LibriSpeech(tmp_path, ["train-960"])
    with pytest.raises(DataError, match="has no folder dev-other") as caught:
        list(LibriSpeech(tmp_path, ["dev-other"]).sources())
    assert "train-clean-100" in caught.value.mend


def test_what_lists_and_files_do_not_agree_on_is_named_and_the_rest_kept(tmp_path: Path) -> None:
    base = make(tmp_path / "in") / "LibriSpeech"
    (base / "train-clean-100/103/1240/103-1240-0000.flac").unlink()
    write_tone(base / "train-clean-100/1034/121119/1034-121119-0001.flac")
    write_text(base / "train-other-500/20/205/20-205.trans.txt", "20-205-0000\n")
    (base / "dev-clean/1272/128104/1272-128104.trans.txt").write_bytes(b"1272-128104-0000 \xff\xfe")
    (base / "test-other/367/130732/367-130732-0000.flac").write_bytes(b"fLaC")
    result = prepared(LibriSpeech(tmp_path / "in"), tmp_path / "out")
    assert set(result.utterances) == {"103-1240-0001", "1034-121119-0000"}
    reasons = result.reasons
    assert "no such file" in reasons["103-1240-0000"]
    assert "no text for 1034-121119-0001" in reasons["1034-121119-0001"]
    assert "no text for 20-205-0000" in reasons["20-205-0000"]
    assert "UTF-8" in reasons["1272-128104-0000"]
    assert "UTF-8" in reasons["1272-128104-0001"]
    assert "cannot be read as audio" in reasons["367-130732-0000"]


def test_another_folder_is_refused_with_the_names_it_lacks(tmp_path: Path) -> None:
    write_tone(tmp_path / "speaker" / "a.flac")
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(
            DataError, match="does not look like LibriSpeech: it has none of the folders train-clean-100"
        ):
            list(LibriSpeech(folder).sources())
