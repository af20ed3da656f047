import gzip
from pathlib import Path

import pytest

from data_prep.voxpopuli import VoxPopuli
from ossicle.core.errors import ConfigError, DataError
from tests.data_prep.miniature import pitch_hz, prepared, steps, write_text, write_tone, write_wave

DE, PL = "20190912-0900-PLENARY-3_de", "20100120-1500-PLENARY_pl"
COMMITTEE = "20190912-1430-COMMITTEE-ENVI_de"
RAW = {
    f"{DE}_0": ("de", 1.0, 300),
    f"{DE}_1": ("de", 1.5, 500),
    f"{COMMITTEE}_0": ("de", 0.5, 700),
    f"{PL}_0": ("pl", 0.9, 400),
}


def write_list(root: Path, lines: list[str], name: str = "unlabelled_v2") -> None:
    path = root / "unlabelled_data" / f"{name}.tsv.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("\n".join([*lines, ""]).encode()))


def make_raw(root: Path, *more: str) -> Path:
    write_wave(root / f"raw_audios/de/2019/{DE}.ogg", steps(300, 500, 600))
    write_wave(root / f"raw_audios/de/2019/{COMMITTEE}.ogg", steps(700))
    write_wave(root / f"raw_audios/pl/2010/{PL}.ogg", steps(400))
    (root / "raw_audios/original/2019").mkdir(parents=True)
    rows = [
        f"{DE}\t0\t0.0\t1.0",
        f"{DE}\t1\t1.0\t2.5",
        "20180101-0900-PLENARY_de\t0\t0.0\t29.9",
        f"{COMMITTEE}\t0\t0.5\t1.0",
        f"{PL}\t0\t0.1\t1.0",
        "20190912-0900-PLENARY-3_fr\t0\t0.0\t20.0",
    ]
    write_list(root, ["event_id\tsegment_no\tstart\tend", *rows, *more])
    return root


def make_transcribed(root: Path) -> Path:
    header = "id\traw_text\tnormalized_text\tspeaker_id\tsplit\tgender"
    rows = {
        "de": {
            "train": ["20180614-0900-PLENARY-4-de_20180614-12:54:22_14\tWir, ja.\twir ja\t28186\ttrain\tfemale"],
            "dev": ["20170403-0900-PLENARY-17-de_20170403-20:00:27_7\t\tich will\tNone\tdev\tmale"],
            "test": ["20130206-0900-PLENARY-9-de_20130206-11:38:44_3\t\tdanke schön\t28235\ttest\tmale"],
        },
        "en_accented": {"test": ["20161026-0900-PLENARY-14-en_20161026-17:14:50_1\t\tthank you\t1\ttest\tmale"]},
    }
    for language, splits in rows.items():
        base = root / "transcribed_data" / language
        for split, lines in splits.items():
            write_text(base / f"asr_{split}.tsv", "\n".join([header, *lines, ""]))
            for line in lines:
                write_tone(base / line[:4] / f"{line.split(chr(9))[0]}.ogg")
    return root


def test_raw_events_are_cut_by_the_list_of_segments(tmp_path: Path) -> None:
    result = prepared(VoxPopuli(make_raw(tmp_path / "in")), tmp_path / "out")
    assert result.splits() == {"train": set(RAW)}
    for name, (language, seconds, hz) in RAW.items():
        assert result.utterances[name].language == language
        assert result.seconds(name) == pytest.approx(seconds, abs=1e-3)
        assert pitch_hz(result.waves[name][:8_000]) == pytest.approx(hz, abs=5)
    assert result.reasons == {}


def test_subsets_and_languages_are_chosen(tmp_path: Path) -> None:
    make_raw(tmp_path)

    def taken(**options: object) -> set[str]:
        return {source.name for source in VoxPopuli(tmp_path, **options).sources()}

    assert taken(subset="100k") == {f"{DE}_0", f"{DE}_1", f"{PL}_0"}
    assert taken(subset="10k") == {f"{DE}_0", f"{DE}_1"}
    assert taken(languages=["pl"]) == {f"{PL}_0"}


def test_the_list_by_speakers_serves_too(tmp_path: Path) -> None:
    make_raw(tmp_path)
    write_list(tmp_path, ["session_id|id_|start_time|end_time", f"{DE}|4|0.25|1.25"], "unlabelled_sd")
    sources = list(VoxPopuli(tmp_path, segments="unlabelled_data/unlabelled_sd.tsv.gz").sources())
    assert [(source.name, source.start_s, source.end_s) for source in sources] == [(f"{DE}_4", 0.25, 1.25)]


def test_segments_that_were_cut_before_are_taken_as_they_are(tmp_path: Path) -> None:
    for name in RAW:
        language = name.split("_")[1]
        write_tone(tmp_path / "in/unlabelled_data" / language / name[:4] / f"{name}.ogg", 0.5)
    write_list(tmp_path / "in", ["event_id\tsegment_no\tstart\tend"])
    result = prepared(VoxPopuli(tmp_path / "in", "unlabelled", subset="100k"), tmp_path / "out")
    assert {name: utterance.language for name, utterance in result.utterances.items()} == {
        f"{DE}_0": "de",
        f"{DE}_1": "de",
        f"{PL}_0": "pl",
    }


def test_transcribed_speech_has_its_splits_speakers_and_texts(tmp_path: Path) -> None:
    result = prepared(VoxPopuli(make_transcribed(tmp_path / "in"), "transcribed"), tmp_path / "out")
    facts = {
        name.split("_")[0]: (found.split, found.language, found.speaker, found.text)
        for name, found in result.utterances.items()
    }
    assert facts == {
        "20180614-0900-PLENARY-4-de": ("train", "de", "28186", "wir ja"),
        "20170403-0900-PLENARY-17-de": ("dev", "de", "", "ich will"),
        "20130206-0900-PLENARY-9-de": ("test", "de", "28235", "danke schön"),
        "20161026-0900-PLENARY-14-en": ("test", "en", "1", "thank you"),
    }
    assert {round(result.seconds(name), 2) for name in result.utterances} == {0.5}


def test_missing_files_and_malformed_lines_are_named_and_the_rest_kept(tmp_path: Path) -> None:
    make_raw(tmp_path / "in", f"{DE}\t2", f"{DE}\t3\t2.0\tend", f"{DE}\t4\t2.0\t99.0", "nonsense")
    result = prepared(VoxPopuli(tmp_path / "in"), tmp_path / "out")
    assert set(result.utterances) == set(RAW)
    bad = result.reasons
    assert set(bad) == {"unlabelled_v2.tsv.gz line 8", f"{DE}_3", f"{DE}_4", "unlabelled_v2.tsv.gz line 11"}
    assert "2 columns where the first line has 4" in bad["unlabelled_v2.tsv.gz line 8"]
    assert "is no span of time" in bad[f"{DE}_3"]
    assert "lasts 3.00 s and has no span from 2.0 to 99.0 s" in bad[f"{DE}_4"]
    gone = next((make_transcribed(tmp_path / "text") / "transcribed_data/de/2018").iterdir())
    gone.unlink()
    result = prepared(VoxPopuli(tmp_path / "text", "transcribed"), tmp_path / "out2")
    assert "no such file" in result.reasons[gone.stem]
    assert len(result.utterances) == 3


def test_wrong_folders_lists_and_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not look like voxpopuli"):
        list(VoxPopuli(tmp_path).sources())
    make_raw(tmp_path)
    with pytest.raises(DataError, match="has no folder fr") as caught:
        list(VoxPopuli(tmp_path, languages=["fr"]).sources())
    assert "de, pl" in caught.value.mend
    listed = tmp_path / "unlabelled_data/unlabelled_v2.tsv.gz"
    listed.write_bytes(listed.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        list(VoxPopuli(tmp_path).sources())
    write_list(tmp_path, ["a\tb"])
    with pytest.raises(DataError, match="has no column event_id, segment_no, start, end"):
        list(VoxPopuli(tmp_path).sources())
    listed.unlink()
    with pytest.raises(DataError, match="is missing"):
        list(VoxPopuli(tmp_path).sources())
    with pytest.raises(ConfigError, match="names no part of the corpus"):
        VoxPopuli(tmp_path, languages=["ru"])
