import json
import tracemalloc
from pathlib import Path

import pytest

from data_prep.gigaspeech import GigaSpeech, read_audios
from ossicle.core.errors import ConfigError, DataError
from tests.data_prep.miniature import pitch_hz, prepared, steps, write_text, write_wave


def segment(aid: str, number: int, begin: object, end: object, text: str, *subsets: str) -> dict[str, object]:
    return {
        "sid": f"{aid}_S{number:07d}",
        "speaker": "N/A",
        "begin_time": begin,
        "end_time": end,
        "text_tn": text,
        "subsets": [f"{{{subset}}}" for subset in subsets],
    }


def audio(kind: str, aid: str, subsets: list[str], segments: list[dict[str, object]]) -> dict[str, object]:
    return {
        "title": 'A "title", with ] and } in it',
        "url": "https://example.org/a.mp3",
        "path": f"audio/{kind}/P0001/{aid}.opus",
        "aid": aid,
        "source": kind,
        "codec": "aac",
        "channels": 1,
        "md5": "0" * 32,
        "speaker": "N/A",
        "category": "Arts",
        "sample_rate": 16000,
        "duration": 4.0,
        "format": "opus",
        "subsets": [f"{{{subset}}}" for subset in subsets],
        "segments": segments,
    }


POD, YOU, TEST = "POD0000000001", "YOU0000000002", "YOU0000000003"
AUDIOS = [
    audio("podcast", POD, ["XL", "L", "XS"], [
        segment(POD, 1, 0.0, 1.0, "DOUGLAS MCGRAY IS GOING TO BE OUR GUIDE <PERIOD>", "XL", "L", "XS"),
        segment(POD, 2, 1.0, 2.5, "YOU WALK <COMMA> YOU SEE <QUESTIONMARK>", "XL", "L"),
    ]),
    audio("youtube", YOU, ["XL"], [segment(YOU, 0, 0.5, 2.0, "HELLO <EXCLAMATIONPOINT>", "XL")]),
    audio("youtube", TEST, ["TEST", "DEV"], [
        segment(TEST, 0, 0.0, 1.0, "<MUSIC>", "TEST"),
        segment(TEST, 1, 1.0, 2.0, "THANK YOU", "TEST"),
        segment(TEST, 2, 2.0, 3.0, "WELCOME", "DEV"),
    ]),
]  # fmt: skip


def make(root: Path, audios: list[dict[str, object]] = AUDIOS, indent: int | None = 2) -> Path:
    metadata = {"dataset": "GigaSpeech", "language": "EN", "version": "v1.0.0", "audios": audios}
    write_text(root / "GigaSpeech.json", json.dumps(metadata, indent=indent))
    for entry in AUDIOS:
        write_wave(root / str(entry["path"]), steps(300, 500, 700, 900))
    return root


def test_segments_of_whole_recordings_come_back_by_subset(tmp_path: Path) -> None:
    result = prepared(GigaSpeech(make(tmp_path / "in")), tmp_path / "out")
    assert result.splits() == {
        "train": {f"{POD}_S0000001", f"{POD}_S0000002", f"{YOU}_S0000000"},
        "dev": {f"{TEST}_S0000002"},
        "test": {f"{TEST}_S0000001"},
    }
    said = result.utterances[f"{POD}_S0000002"]
    assert (said.speaker, said.language, said.text) == ("", "en", "YOU WALK, YOU SEE?")
    assert result.utterances[f"{YOU}_S0000000"].text == "HELLO!"
    assert result.seconds(f"{POD}_S0000002") == pytest.approx(1.5, abs=1e-3)
    assert pitch_hz(result.waves[f"{POD}_S0000002"][:12_000]) == pytest.approx(500, abs=5)
    assert pitch_hz(result.waves[f"{TEST}_S0000002"][:12_000]) == pytest.approx(700, abs=5)
    assert result.reasons == {}


def test_smaller_subsets_are_parts_of_larger_ones(tmp_path: Path) -> None:
    make(tmp_path)

    def taken(*parts: str) -> list[str]:
        return [source.name for source in GigaSpeech(tmp_path, parts).sources()]

    assert taken("XS") == [f"{POD}_S0000001"]
    assert taken("L") == [f"{POD}_S0000001", f"{POD}_S0000002"]
    assert taken("L", "XS", "DEV") == [f"{POD}_S0000001", f"{POD}_S0000002", f"{TEST}_S0000002"]


@pytest.mark.parametrize("chunk", [1, 7, 100, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_the_list_is_that_of_a_json_reader_wherever_it_is_broken_up(tmp_path: Path, chunk: int, indent: int) -> None:
    path = make(tmp_path, indent=indent) / "GigaSpeech.json"
    assert list(read_audios(path, chunk)) == json.loads(path.read_text(encoding="utf-8"))["audios"]


def test_memory_does_not_grow_with_the_list(tmp_path: Path) -> None:
    entry = json.dumps(
        audio("podcast", POD, ["XL"], [segment(POD, n, n, n + 1, "WORDS " * 9, "XL") for n in range(99)])
    )
    path = tmp_path / "GigaSpeech.json"
    with path.open("w", encoding="utf-8") as file:
        file.write('{"dataset": "GigaSpeech", "audios": [' + entry)
        for _ in range(1500):
            file.write(", " + entry)
        file.write("]}")
    tracemalloc.start()
    count = sum(1 for _ in read_audios(path, 1 << 16))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 1501
    assert path.stat().st_size > 20 * peak


def test_missing_files_and_malformed_entries_are_named_and_the_rest_kept(tmp_path: Path) -> None:
    good = segment(POD, 1, 0.0, 1.0, "A", "XL")
    wrong = [
        {key: value for key, value in good.items() if key != "text_tn"},
        good | {"sid": "late", "begin_time": 99.0, "end_time": 100.0},
        good | {"sid": "turned", "begin_time": 2.0, "end_time": 1.0},
        {"sid": "bare"},
    ]
    entries = [
        audio("podcast", POD, ["XL"], [good, *wrong]),
        audio("podcast", "POD0000000009", ["XL"], [segment("POD0000000009", 0, 0.0, 1.0, "GONE", "XL")]),
        {"aid": "empty"},
    ]
    result = prepared(GigaSpeech(make(tmp_path / "in", entries)), tmp_path / "out")
    assert set(result.utterances) == {f"{POD}_S0000001"}
    bad = result.reasons
    assert "KeyError('text_tn')" in bad[f"recording 0 ({POD}), segment 1"]
    assert "has no span from 99.0 to 100.0 s" in bad["late"]
    assert "lasts from 2.0 to 1.0 s" in bad["turned"]
    assert "has no subsets" in bad[f"recording 0 ({POD}), segment 4"]
    assert "No such file" in bad["POD0000000009_S0000000"]
    assert "has no subsets" in bad["recording 2 (empty), segment 0"]


def test_wrong_folders_and_damaged_lists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not look like gigaspeech"):
        list(GigaSpeech(tmp_path).sources())
    path = make(tmp_path) / "GigaSpeech.json"
    whole = path.read_text(encoding="utf-8")
    damaged = {"cut": whole[: len(whole) // 2], "other": "{}", "list": '{"audios": [1, 2]}'}
    reasons = {"cut": "does not end", "other": 'no list "audios"', "list": "stands among the recordings"}
    for name, content in damaged.items():
        write_text(path, content)
        with pytest.raises(DataError, match=reasons[name]) as caught:
            list(GigaSpeech(tmp_path).sources())
        assert "MD5" in caught.value.mend
    with pytest.raises(ConfigError, match="choose from XL, L, M, S, XS, DEV, TEST"):
        GigaSpeech(tmp_path, ["XXL"])
