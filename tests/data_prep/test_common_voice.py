from pathlib import Path

import pytest
from torchaudio.datasets import COMMONVOICE

from data_prep.common_voice import CommonVoice
from ossicle.core.errors import ConfigError, DataError
from tests.data_prep.miniature import prepared, write_text, write_tone

HEADER = (
    "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tdown_votes\tage\tgender\taccents\tvariant\t"
    "locale\tsegment"
)
OLD_HEADER = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccent\tlocale\tsegment"
# list: client, number of the clip, sentence
LISTS = {
    "train": [("ann", 1, 'Er sagte: "Guten Tag".'), ("bob", 2, "Zwei Äpfel.")],
    "dev": [("cyd", 3, "Drei Birnen.")],
    "test": [("dan", 4, "Vier Kirschen.")],
    "validated": [("ann", 1, 'Er sagte: "Guten Tag".'), ("bob", 2, "Zwei Äpfel."), ("bob", 5, "Zwei Äpfel."),
                  ("cyd", 3, "Drei Birnen."), ("dan", 4, "Vier Kirschen."), ("dan", 6, "Sechs.")],
    "other": [("eve", 7, "Sieben."), ("cyd", 8, "Acht.")],
    "invalidated": [("fay", 9, "Neun.")],
}  # fmt: skip


def clip(locale: str, number: int) -> str:
    return f"common_voice_{locale}_{17_000_000 + number}"


def row(locale: str, client: str, number: int, sentence: str) -> str:
    return f"{client}\t{clip(locale, number)}.mp3\tid{number}\t{sentence}\t\t2\t0\ttwenties\t\t\t\t{locale}\t"


def make(root: Path, locale: str = "de") -> Path:
    base = root / locale
    for name, entries in LISTS.items():
        write_text(base / f"{name}.tsv", "\n".join([HEADER, *(row(locale, *entry) for entry in entries), ""]))
    for number in range(1, 10):
        write_tone(base / "clips" / f"{clip(locale, number)}.mp3", 0.5 + number / 10, 32_000)
    lengths = (f"{clip(locale, number)}.mp3\t{500 + 100 * number}" for number in range(1, 10))
    write_text(base / "clip_durations.tsv", "\n".join(["clip\tduration[ms]", *lengths, ""]))
    write_text(base / "reported.tsv", "sentence\tsentence_id\tlocale\treason\n")
    return root


def test_speakers_locales_splits_and_sentences_come_back(tmp_path: Path) -> None:
    make(tmp_path / "in", "de")
    make(tmp_path / "in", "zh-CN")
    result = prepared(CommonVoice(tmp_path / "in"), tmp_path / "out")
    assert result.splits() == {
        "train": {clip(locale, number) for locale in ("de", "zh-CN") for number in (1, 2)},
        "dev": {clip(locale, 3) for locale in ("de", "zh-CN")},
        "test": {clip(locale, 4) for locale in ("de", "zh-CN")},
    }
    said = result.utterances[clip("de", 1)]
    assert (said.speaker, said.language, said.text) == ("ann", "de", 'Er sagte: "Guten Tag".')
    assert result.utterances[clip("zh-CN", 4)].language == "zh"
    assert result.seconds(clip("de", 4)) == pytest.approx(0.9, abs=0.1)
    assert result.reasons == {}


def test_clips_are_those_that_torchaudio_lists(tmp_path: Path) -> None:
    make(tmp_path)
    for part in ("train", "dev", "test", "invalidated"):
        theirs = COMMONVOICE(tmp_path / "de", f"{part}.tsv")
        listed = [(line[1].removesuffix(".mp3"), line[0]) for line in theirs._walker]
        ours = CommonVoice(tmp_path / "de", parts=[part])
        assert [(source.name, source.speaker) for source in ours.sources()] == listed


def test_larger_lists_leave_dev_and_test_unseen_and_say_nothing_twice(tmp_path: Path) -> None:
    make(tmp_path)
    corpus = CommonVoice(tmp_path, parts=["train", "test", "validated", "other"])
    found = [(source.split, source.name) for source in corpus.sources()]
    assert sorted(found) == [
        ("test", clip("de", 4)),
        ("train", clip("de", 1)),
        ("train", clip("de", 2)),
        ("train", clip("de", 5)),
        ("train", clip("de", 7)),
    ]


def test_lengths_are_those_of_the_release_or_of_file_sizes(tmp_path: Path) -> None:
    make(tmp_path)
    known = {source.name: source.seconds for source in CommonVoice(tmp_path).sources()}
    assert known == pytest.approx({clip("de", number): 0.5 + number / 10 for number in range(1, 5)})
    write_text(tmp_path / "de/clip_durations.tsv", "clip\tduration[ms]\nanother.mp3\t100\n")
    assert {source.seconds for source in CommonVoice(tmp_path).sources()} == {5.0}
    (tmp_path / "de/clip_durations.tsv").unlink()
    sizes = [source.seconds for source in CommonVoice(tmp_path).sources()]
    assert all(0 < seconds < 5 for seconds in sizes)


def test_releases_of_before_name_clips_without_a_suffix(tmp_path: Path) -> None:
    base = tmp_path / "in"
    write_tone(base / "clips" / "0a1b.mp3", 0.5, 32_000)
    write_text(base / "train.tsv", f"{OLD_HEADER}\nann\t0a1b\tHallo.\t2\t0\t\t\t\tde\t\n")
    result = prepared(CommonVoice(base, parts=["train"]), tmp_path / "out")
    assert result.utterances["0a1b"].text == "Hallo."


def test_missing_clips_and_malformed_lines_are_named_and_the_rest_kept(tmp_path: Path) -> None:
    make(tmp_path / "in")
    (tmp_path / "in/de/clips" / f"{clip('de', 3)}.mp3").unlink()
    with (tmp_path / "in/de/train.tsv").open("a", encoding="utf-8") as file:
        file.write("gus\thalf a line\n" + row("de", "hal", 0, "x").replace(f"{clip('de', 0)}.mp3", "") + "\n")
    result = prepared(CommonVoice(tmp_path / "in"), tmp_path / "out")
    assert set(result.utterances) == {clip("de", 1), clip("de", 2), clip("de", 4)}
    assert "No such file" in result.reasons[clip("de", 3)]
    assert "2 columns where the first line has 13" in result.reasons["de train.tsv line 4"]
    assert "line 5 names no clip" in result.reasons["de train.tsv line 5"]


def test_wrong_folders_and_arguments_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "in")
    with pytest.raises(DataError, match="has no folder LOCALE/clips") as caught:
        list(CommonVoice(tmp_path).sources())
    assert "cv-corpus-VERSION" in caught.value.mend
    with pytest.raises(DataError, match="has no folder fr/clips"):
        list(CommonVoice(tmp_path / "in", ["de", "fr"]).sources())
    write_text(tmp_path / "in/de/dev.tsv", "path,sentence\n")
    with pytest.raises(DataError, match="has no column client_id"):
        list(CommonVoice(tmp_path / "in", parts=["dev"]).sources())
    with pytest.raises(ConfigError, match="choose from train, dev, test"):
        CommonVoice(tmp_path, parts=["validation"])
