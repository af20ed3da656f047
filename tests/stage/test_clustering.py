"""The bench of clusterings, on few frames."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.clustering import main
from ossicle.stage import sampling


@pytest.fixture
def line(synthetic_dataset: Path, tmp_path: Path) -> list[str]:
    return [f"shards={synthetic_dataset}", "clusters=8", "frames=1000", f"out={tmp_path / 'out.json'}"]


def told(line: list[str], *more: str) -> list[dict[str, object]]:
    main([*line, *more])
    return json.loads(Path(line[-1].removeprefix("out=")).read_text())


def test_clusterings_of_the_same_frames_are_compared_and_an_absent_peer_is_named(
    line: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    records = told(line)
    found = {str(record["system"]): record.get("inertia") for record in records if "absent" not in record}
    assert len(found) == 4
    assert max(found.values()) < 1.2 * min(found.values())
    assert [record["absent"] for record in records if str(record["system"]).startswith("faiss")] == [
        "import of faiss halted; None in sys.modules"
    ] * 2


def test_samples_of_more_utterances_read_more(line: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "SPREAD", sampling.SPREAD)  # set back afterwards
    records = told(line, "what=sample", "frames=200")
    assert [record["spread"] for record in records] == [4, 16, 10**9]
    assert records[0]["read"] < records[1]["read"] < records[2]["read"] == 1


def test_frames_are_timed_by_the_audio_in_a_batch(line: list[str]) -> None:
    assert all(record["audio_s_per_cpu_s"] > 0 for record in told(line, "what=batches"))
