import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep.lhotse import Lhotse
from ossicle.core.errors import DataError
from ossicle.data.utterance import Phone
from tests.data_prep.miniature import pitch_hz, prepared, steps, write_wave


def write_rows(path: Path, *rows: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def recording(name: str, path: str, seconds: float, channels: tuple[int, ...] = (0,)) -> dict[str, object]:
    source = {"type": "file", "channels": list(channels), "source": path}
    samples = round(seconds * 16_000)
    sizes = {"sampling_rate": 16_000, "num_samples": samples, "duration": seconds, "channel_ids": list(channels)}
    return {"id": name, "sources": [source], **sizes}


def supervision(name: str, of: str, start: float, duration: float, **more: object) -> dict[str, object]:
    return {"id": name, "recording_id": of, "start": start, "duration": duration, "channel": 0, **more}


def make(root: Path) -> Path:
    """One mono recording of three tones and one with a tone in each of two channels."""
    write_wave(root / "long.wav", steps(300, 600, 900))
    soundfile.write(root / "stereo.wav", np.stack([steps(300), steps(700)], axis=1), 16_000)
    return root


def test_supervisions_are_joined_with_their_recordings(tmp_path: Path) -> None:
    root = make(tmp_path / "in")
    stereo = recording("stereo", "stereo.wav", 1.0, (0, 1))
    write_rows(root / "x_recordings_dev.jsonl.gz", recording("long", "long.wav", 3.0), stereo)
    phones = {"phone": [["z", 1.0, 0.25, None], ["v", 1.25, 0.75, 0.9]], "word": [["zwei", 1.0, 1.0, None]]}
    write_rows(
        root / "x_supervisions_dev.jsonl.gz",
        supervision("s1", "long", 1.0, 1.0, text="zwei", language="de", speaker="eva", alignment=phones),
        supervision("s2", "stereo", 0, 1.0, channel=1),
        supervision("s3", "stereo", 0, 1.0, channel=[0, 1]),
    )
    result = prepared(Lhotse(root), tmp_path / "out")
    assert result.splits() == {"dev": {"s1", "s2", "s3"}}
    said = result.utterances["s1"]
    assert (said.speaker, said.language, said.text) == ("eva", "de", "zwei")
    assert said.phones == (Phone(0, 4000, "z"), Phone(4000, 16_000, "v"))
    assert round(pitch_hz(result.waves["s1"]), -1) == 600
    assert round(pitch_hz(result.waves["s2"]), -1) == 700
    both = (soundfile.read(root / "stereo.wav")[0]).mean(axis=1)
    np.testing.assert_allclose(result.waves["s3"], both, atol=1e-4)


def test_recordings_alone_are_utterances(tmp_path: Path) -> None:
    root = make(tmp_path / "in")
    write_rows(root / "recordings.jsonl", recording("long", "long.wav", 3.0))
    result = prepared(Lhotse(root), tmp_path / "out")
    assert result.splits() == {"train": {"long"}}
    assert result.seconds("long") == 3.0


def test_cuts_are_spans_with_what_is_in_them(tmp_path: Path) -> None:
    root = make(tmp_path / "in")
    said = [
        supervision("s1", "long", 0, 0.5, text="eins", speaker="eva", language="de"),
        supervision("s2", "long", 0.5, 0.5, text="zwei", speaker="bob", language="de"),
    ]
    aligned = {"phones": [["a", 0.0, 0.5, None]]}
    whole = {"start": 0, "duration": 1.0, "channel": 0, "recording": recording("long", "long.wav", 3.0)}
    later = {**whole, "start": 1.0}
    rows = [
        {**whole, "id": "c1", "supervisions": said, "type": "MonoCut"},
        {**whole, "id": "c2", "supervisions": [supervision("s", "long", 0, 1, alignment=aligned)], "type": "MonoCut"},
        {**later, "id": "c3", "supervisions": [supervision("s", "long", 0, 1, alignment=aligned)], "type": "MonoCut"},
    ]
    write_rows(root / "cuts_train.jsonl.gz", *rows)
    result = prepared(Lhotse(root), tmp_path / "out")
    first = result.utterances["c1"]
    assert (first.text, first.speaker, first.language) == ("eins zwei", "", "de")
    assert result.utterances["c2"].phones == (Phone(0, 8000, "a"),)
    # Lhotse moves supervisions and not their alignments: the times of this one may be of the recording or of the cut
    assert result.utterances["c3"].phones == ()
    assert round(pitch_hz(result.waves["c3"]), -1) == 600


def test_what_is_no_plain_file_is_named_and_commands_are_not_executed(tmp_path: Path) -> None:
    root = make(tmp_path / "in")
    touched = tmp_path / "touched"
    plain = recording("long", "long.wav", 3.0)
    command = {**plain, "sources": [{"type": "command", "channels": [0], "source": f"touch {touched}"}]}
    url = {**plain, "sources": [{"type": "url", "channels": [0], "source": "http://nowhere/a.wav"}]}
    faster = {**plain, "transforms": [{"name": "Speed", "kwargs": {"factor": 0.9}}]}
    resampled = {**plain, "transforms": [{"name": "Resample", "kwargs": {"target_sampling_rate": 8000}}]}
    cut = {"start": 0, "duration": 1.0, "channel": 0, "supervisions": [], "type": "MonoCut"}
    write_rows(
        root / "cuts.jsonl",
        {"id": "command", **cut, "recording": command},
        {"id": "url", **cut, "recording": url},
        {"id": "faster", **cut, "recording": faster},
        {"id": "resampled", **cut, "recording": resampled},
        {"id": "gone", **cut, "recording": recording("gone", "gone.wav", 3.0)},
        {"id": "mixed", "tracks": [], "type": "MixedCut"},
        {"id": "channel", **cut, "channel": 3, "recording": plain},
        {"id": "span", **cut, "duration": 0, "recording": plain},
        {"id": "broken", **cut, "recording": plain, "supervisions": [{"alignment": {"phone": [["a", 0.0]]}}]},
    )
    result = prepared(Lhotse(root), tmp_path / "out")
    assert not touched.exists()
    assert set(result.utterances) == {"resampled"}
    assert "commands are not executed" in result.reasons["command"]
    assert "but url" in result.reasons["url"]
    assert "Speed" in result.reasons["faster"]
    assert "gone.wav, and there is none" in result.reasons["gone"]
    assert "this MixedCut holds no recording" in result.reasons["mixed"]
    assert "channel 3 is asked for" in result.reasons["channel"]
    assert "no span of time" in result.reasons["span"]
    assert "line 9" in result.reasons["broken"]


def test_lists_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "a_supervisions_dev.jsonl", supervision("s", "r", 0, 1))
    with pytest.raises(DataError, match="has no recordings beside it"):
        list(Lhotse(tmp_path).sources())
    write_rows(tmp_path / "a_recordings_dev.jsonl", recording("q", "q.wav", 1))
    assert "no recording 'r'" in next(Lhotse(tmp_path).sources()).problem
    write_rows(tmp_path / "b_recordings_dev.jsonl", recording("q", "q.wav", 1))
    with pytest.raises(DataError, match="are recordings of the same part"):
        list(Lhotse(tmp_path).sources())


def test_a_manifest_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "recordings.jsonl.gz", *(recording(str(n), f"{n}.wav", 1) for n in range(500)))
    whole = (tmp_path / "recordings.jsonl.gz").read_bytes()
    (tmp_path / "recordings.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"recordings\.jsonl\.gz cannot be read"):
        list(Lhotse(tmp_path).sources())


def test_what_lhotse_itself_writes_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lhotse = pytest.importorskip("lhotse")
    root = make(tmp_path / "in")
    monkeypatch.chdir(root)
    files = [lhotse.Recording.from_file(name) for name in ("long.wav", "stereo.wav")]
    recordings = lhotse.RecordingSet.from_recordings(files)
    item = lhotse.supervision.AlignmentItem("z", 1.0, 0.5)
    segments = [
        lhotse.SupervisionSegment("s1", "long", 1.0, 1.0, 0, "zwei", "de", "eva", alignment={"phone": [item]}),
        lhotse.SupervisionSegment("s2", "stereo", 0.0, 1.0, 1, "rechts"),
    ]
    supervisions = lhotse.SupervisionSet.from_segments(segments)
    recordings.to_file("a_recordings_dev.jsonl.gz")
    supervisions.to_file("a_supervisions_dev.jsonl.gz")
    cuts = lhotse.CutSet.from_manifests(recordings, supervisions).trim_to_supervisions(keep_overlapping=False)
    cuts.to_file("a_cuts_train.jsonl.gz")
    theirs = {cut.supervisions[0].id: cut for cut in cuts}
    corpus = Lhotse(root)
    joined = {(source.split, source.name): corpus.load(source) for source in corpus.sources()}
    assert set(joined) == {("dev", "s1"), ("dev", "s2"), ("train", "s1"), ("train", "s2")}
    for (split, name), sample in joined.items():
        cut = theirs[name]
        np.testing.assert_allclose(sample.pcm_S / 32768, cut.load_audio()[0], atol=1e-4)
        said = cut.supervisions[0]
        assert (sample.utterance.text, sample.utterance.speaker) == (said.text, said.speaker or "")
        assert sample.utterance.phones == ((Phone(0, 8000, "z"),) if (split, name) == ("dev", "s1") else ())
