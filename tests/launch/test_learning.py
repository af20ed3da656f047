import json
from pathlib import Path

import pytest

from benchmarks.learning import COLUMNS, Result, beats, combinations, main, point_name, row
from tests.launch.toy import TOY

SMALL = [item for item in TOY if not item.startswith(("threads", "wandb"))]
PROBE = ["train_s=40", "dev_s=15", "test_s=15", "seeds=[0]"]


def test_a_multirun_is_gathered_and_goes_on_where_it_was(synthetic_dataset: Path, tmp_path: Path) -> None:
    line = [
        "--shards", str(synthetic_dataset), "--hours", "0.005", "--experiments", "best_rq_tiny", "--runs",
        str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--sweep", "encoder=transformer,progressive",
        "--override", *SMALL, "--probe", *PROBE,
    ]  # fmt: skip
    main(line)
    records = json.loads((tmp_path / "out.json").read_text())
    assert [record["name"].split("=")[1] for record in records] == ["transformer", "progressive"]
    assert "encoder" in records[1]["failure"]  # refused when it was composed, and it stopped nothing
    for record in records[:1]:
        assert record["failure"] is None
        assert record["steps"] == 4  # 0.005 hours in steps of 4 s
        assert record["cost"]["audio_hours"] == pytest.approx(4 * 4 / 3600, rel=0.3)
        assert set(record["errors"]["phone"]) == {"logmel", "untrained", "pretrained"}
        assert record["metrics"]["target/codes_perplexity"] > 1
    assert (tmp_path / "out.png").stat().st_size > 1000
    assert (tmp_path / "out.md").read_text().count("| best_rq_tiny") == 2
    reports = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.json")}
    main(line)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.json")} == reports
    assert json.loads((tmp_path / "out.json").read_text()) == records


def test_a_sweep_is_every_combination_of_its_values() -> None:
    assert list(combinations(["a=1,2", "b=x"])) == [("a=1", "b=x"), ("a=2", "b=x")]
    assert list(combinations([])) == [()]


def test_points_are_called_by_what_tells_them_apart() -> None:
    alike = [Result("a_tiny mixer=b encoder=c", 0, "", 1), Result("a_tiny mixer=d encoder=c", 0, "", 1)]
    assert [point_name(result, alike) for result in alike] == ["b c", "d c"]
    unlike = [Result("a_tiny", 0, "", 1), Result("e_tiny mixer=b", 0, "", 1)]
    assert [point_name(result, unlike) for result in unlike] == ["a", "e b"]


def test_a_run_is_bold_only_below_both_baselines() -> None:
    errors = {"pretrained": 0.4, "untrained": 0.5, "logmel": 0.45}
    result = Result("a", 0, "runs/a", 10, {"phone": errors, "language": errors}, {"cpu_s": 9.0, "params": None})
    assert beats(result)
    assert "**40.0 %**" in row(result)
    assert row(result).count(" | ") == len(COLUMNS) - 1
    worse = Result("a", 0, "runs/a", 10, {"phone": errors | {"logmel": 0.3}, "language": errors})
    assert not beats(worse)
    assert "**" not in row(worse)
