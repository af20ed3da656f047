import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import main, tasks
from benchmarks.profile_step import main as profile_step


def tried(out: Path, *words: str) -> dict[str, str]:
    """The summary of a trial, in a process that may be forked: pytest's has threads."""
    line = [sys.executable, "benchmarks/gpu.py", "--out", str(out), "--device", "cpu", "--small", *words]
    temporary = out.parent / "temporary"
    temporary.mkdir(exist_ok=True)
    done = subprocess.run(line, env=os.environ | {"TMPDIR": str(temporary)}, check=True, capture_output=True, text=True)
    summary = json.loads((out / "summary.json").read_text())
    assert done.stdout.splitlines() == [f"{name}: {outcome}" for name, outcome in summary.items()]
    return summary


def test_its_commands_run_and_every_record_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = tried(out, "--only", "step,peers_1")
    assert set(summary) == {"step", "peers_1"}
    assert all(outcome.startswith("done") for outcome in summary.values()), (out / "log.txt").read_text()
    records = json.loads((out / "records.json").read_text())
    assert [record["experiment"] for record in records["step"]] == ["hubert_tiny"]
    assert [record["system"] for record in records["peers_1"]] == ["ossicle"]
    assert sorted(file.name for file in out.iterdir()) == ["log.txt", "records.json", "summary.json"]


@pytest.mark.slow
def test_the_trainer_stands_beside_its_bare_step(tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = tried(out, "--only", "trainer")
    assert summary["trainer"].startswith("done"), (out / "log.txt").read_text()
    found = json.loads((out / "records.json").read_text())["trainer"]
    assert found["ratio"] == pytest.approx(found["trainer_audio_s_per_s"] / found["bare_audio_s_per_s"])
    assert (len(found["readings"]), len(found["bare"])) == (2, 2)  # of four readings


def test_a_profile_names_operators_and_their_time(tmp_path: Path) -> None:
    out = tmp_path / "step.txt"
    profile_step(["--batch", "2", "--crop-s", "1", "--steps", "1", "--profiled", "1", "--out", str(out), "hubert_tiny"])
    head, rate, total, *rows = out.read_text().splitlines()
    assert head.startswith("hubert_tiny: 2 x 1 s on cpu")
    assert "audio-s/s" in rate
    times = [float(row.split()[0]) for row in rows]
    assert times == sorted(times, reverse=True)
    assert sum(times) == pytest.approx(float(total.split()[0]), rel=0.01)
    assert any("aten::addmm" in row for row in rows)


def test_what_there_is_no_time_for_is_said(tmp_path: Path) -> None:
    assert tried(tmp_path / "out", "--limit", "1", "--only", "mixers") == {"mixers": "no time was left"}


@pytest.mark.parametrize(
    ("words", "outcome"),
    [("'-m', 'http.server', '0'", "stopped after 2 s"), ("'-m', 'json.tool', 'absent.json'", "ended with")],
)
def test_how_a_task_ended_is_said(tmp_path: Path, words: str, outcome: str) -> None:
    log = tmp_path / "log.txt"
    code = "import sys; from pathlib import Path; from benchmarks.gpu import context, ended, start; "
    code += f"print(ended(start([sys.executable, {words}], Path({str(log)!r}), context('cpu')), 2))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.startswith(outcome)
    assert words.split("'")[3] in log.read_text()


def test_a_task_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--only", "stepp"])
    assert "there is no task stepp" in capsys.readouterr().err


def test_on_a_gpu_the_sizes_are_those_of_the_published_tables() -> None:
    found = tasks("cuda", small=False)
    assert next(iter(found)) == "tests"
    assert {"batch=64", "crop_s=15.6", "device=cuda"} <= set(found["peers_64"][1])
    assert "batch=11" in found["peers_11"][1]
