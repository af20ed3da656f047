from pathlib import Path

import pytest

from data_prep.mls import MLS
from ossicle.core.errors import ConfigError, DataError
from tests.data_prep.miniature import prepared, write_text, write_tone

TEXTS = {
    "mls_german/train": {"10148_10119_000000": "wenn ich mein ganzes leben", "10148_10119_000001": "nun weiß ich es"},
    "mls_german/dev": {"1844_931_000000": "seine züge"},
    "mls_german/test": {"1054_1599_000000": "die sonne schien"},
    "mls_polish_opus/train": {"6892_3490_000000": "w oczach jego"},
    "mls_polish_opus/test": {"8758_4710_000000": "żółta łódź"},
    "mls_polish_opus/dev": {"9098_6338_000000": "powiedział"},
}


def make(root: Path) -> Path:
    for place, texts in TEXTS.items():
        suffix = ".opus" if "_opus" in place else ".flac"
        segments = []
        for number, name in enumerate(texts):
            reader, book, _ = name.split("_")
            write_tone(root / place / "audio" / reader / book / f"{name}{suffix}", 0.5 + number)
            segments.append(f"{name}\thttp://www.archive.org/download/a_64kb.mp3\t10.5\t{11 + number}\n")
        write_text(root / place / "transcripts.txt", "".join(f"{name}\t{text}\n" for name, text in texts.items()))
        write_text(root / place / "segments.txt", "".join(segments))
        write_text(root / place.split("/")[0] / "metainfo.txt", " SPEAKER | GENDER | PARTITION\n 10148 | M | train\n")
    lists = root / "mls_german/train/limited_supervision"
    write_text(lists / "9hr/handles.txt", "10148_10119_000001\n")
    for fold in range(6):
        write_text(lists / f"1hr/{fold}/handles.txt", "10148_10119_000000\n" if fold == 3 else "")
    write_text(root / "mls_lm_german/data.txt", "a language model")
    return root


def test_languages_readers_texts_and_lengths_come_back_of_flac_and_opus(tmp_path: Path) -> None:
    result = prepared(MLS(make(tmp_path / "in")), tmp_path / "out")
    assert result.splits() == {
        "train": {"de/10148_10119_000000", "de/10148_10119_000001", "pl/6892_3490_000000"},
        "dev": {"de/1844_931_000000", "pl/9098_6338_000000"},
        "test": {"de/1054_1599_000000", "pl/8758_4710_000000"},
    }
    said = result.utterances["pl/8758_4710_000000"]
    assert (said.speaker, said.language, said.text) == ("8758", "pl", "żółta łódź")
    assert result.seconds("de/10148_10119_000001") == 1.5
    assert result.reasons == {}


def test_lengths_are_known_before_any_audio_is_opened(tmp_path: Path) -> None:
    make(tmp_path)
    segments = tmp_path / "mls_german/train/segments.txt"
    assert [source.seconds for source in MLS(tmp_path, ["de"], ["train"]).sources()] == [0.5, 1.5]
    write_text(segments, "another\tURL\t1\t2\n10148_10119_000001\tURL\tx\t2\n")
    assert [source.seconds for source in MLS(tmp_path, ["de"], ["train"]).sources()] == [15.0, 15.0]
    segments.unlink()
    assert [source.seconds for source in MLS(tmp_path, ["de"], ["train"]).sources()] == [15.0, 15.0]


def test_limited_supervision_takes_the_listed_ones_of_train(tmp_path: Path) -> None:
    make(tmp_path)
    taken = {part: [s.name for s in MLS(tmp_path, ["de"], [part]).sources()] for part in ("1hr", "9hr")}
    assert taken == {"1hr": ["de/10148_10119_000000"], "9hr": ["de/10148_10119_000001"]}
    assert {source.split for source in MLS(tmp_path, ["de"], ["1hr", "9hr", "dev"]).sources()} == {"train", "dev"}


def test_flac_is_taken_where_a_language_is_there_twice(tmp_path: Path) -> None:
    make(tmp_path)
    write_text(tmp_path / "mls_german_opus/dev/transcripts.txt", "1_2_3\topus\n")
    assert [source.path for source in MLS(tmp_path, ["de"], ["dev"]).sources()] == [
        "mls_german/dev/audio/1844/931/1844_931_000000.flac"
    ]


def test_missing_files_and_malformed_lines_are_named_and_the_rest_kept(tmp_path: Path) -> None:
    root = make(tmp_path / "in")
    (root / "mls_german/dev/audio/1844/931/1844_931_000000.flac").unlink()
    with (root / "mls_german/train/transcripts.txt").open("a", encoding="utf-8") as file:
        file.write("10148_10119_000002\nno name with a text\n")
    result = prepared(MLS(root, ["de"]), tmp_path / "out")
    assert set(result.reasons) == {"de/1844_931_000000", "de/10148_10119_000002", "de/no name with a text"}
    assert "No such file" in result.reasons["de/1844_931_000000"]
    assert "is no name with a text" in result.reasons["de/10148_10119_000002"]
    assert len(result.utterances) == 3


def test_wrong_folders_and_arguments_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "in")
    with pytest.raises(DataError, match="has no folder mls_LANGUAGE for fr") as caught:
        list(MLS(tmp_path / "in", ["fr", "de"]).sources())
    assert "mls_german" in caught.value.mend
    with pytest.raises(DataError, match="for any language"):
        list(MLS(tmp_path / "in" / "mls_german").sources())
    with pytest.raises(DataError, match="9hr is no folder"):
        list(MLS(tmp_path / "in", ["pl"], ["9hr"]).sources())
    with pytest.raises(ConfigError, match="the same speech twice"):
        MLS(tmp_path / "in", parts=["train", "9hr"])
    with pytest.raises(ConfigError, match="choose from nl, en, fr"):
        MLS(tmp_path / "in", ["german"])
