import dataclasses
import json
from pathlib import Path

import pytest
import torch

from ossicle.launch.bench.mixers import Point, Settings, beyond, exponent, macs_of, measure
from tests.launch.toy import ossicle

SETTINGS = Settings(
    dim=16, heads=2, rows=2, device="cpu", dtype=torch.float32, threads=1, repeats=1, max_s=5.0, max_bytes=1e9
)


def test_the_exponent_is_that_of_a_power_law() -> None:
    points = [Point(frames, 0.0, 3e-9 * frames**1.7, 0, 0) for frames in (100, 1000, 2000, 4000)]
    assert exponent(points, 1000) == pytest.approx(1.7)
    assert exponent(points[:1], 0) is None


def test_the_multiplications_of_attention_are_those_of_the_formula() -> None:
    assert macs_of("attention", 50, SETTINGS) == 2 * (4 * 50 * 16 * 16 + 2 * 50 * 50 * 16)


def test_mixers_with_learned_places_get_one_for_every_frame_that_is_measured() -> None:
    assert macs_of("synthesizer_random", 3000, SETTINGS) == 2 * (2 * 3000 * 16 * 16 + 2 * 3000 * 3000 * 16)


def test_a_mixer_that_needs_too_much_is_stopped_with_the_reason() -> None:
    slow = Settings(
        dim=16, heads=2, rows=2, device="cpu", dtype=torch.float32, threads=1, repeats=1, max_s=1e-9, max_bytes=1e9
    )
    points, stopped = measure("attention", [20, 40], slow)
    assert [point.frames for point in points] == [20]
    assert stopped is not None
    assert "20 frames took" in stopped


@pytest.mark.parametrize("name", ["attention", "gru", "ligru", "polynomial"])
def test_in_bf16_a_mixer_runs_as_it_does_in_training(name: str) -> None:
    points, stopped = measure(name, [20, 40], dataclasses.replace(SETTINGS, dtype=torch.bfloat16))
    assert stopped is None
    assert [point.frames for point in points] == [20, 40]


def test_the_next_length_is_foreseen_from_the_last_two() -> None:
    linear = [Point(frames, 0.0, frames / 1000, frames * 10**6, 0) for frames in (500, 1000)]
    square = [Point(frames, 0.0, (frames / 1000) ** 2, frames**2 * 1000, 0) for frames in (500, 1000)]
    assert beyond(linear, 4000, SETTINGS) == "4000 frames might need 4.0 GB"
    assert beyond(linear[:1], 2000, SETTINGS) == "500 frames took 0.5 s, 2000 might take 8 s"
    assert beyond(square, 4000, SETTINGS) == "1000 frames took 1 s, 4000 might take 16 s"
    roomy = dataclasses.replace(SETTINGS, max_bytes=1e12)
    assert beyond(linear, 4000, roomy) is None
    assert beyond(square, 2000, roomy) is None


def test_the_bench_prints_a_table_and_writes_records_and_a_picture(tmp_path: Path) -> None:
    ran = ossicle(
        "bench", "mixer", "mixers=[attention]", "lengths=[32,64,128]", "dim=16", "heads=2", "fit_from=32", "repeats=1",
        "out=records.json", "table=mixers.md", "figure=mixers.png", cwd=tmp_path,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "T^" in ran.stdout
    *points, last = json.loads((tmp_path / "records.json").read_text())
    assert [point["frames"] for point in points] == [32, 64, 128]
    assert all(point["step_ms"] > point["forward_ms"] > 0 and point["macs"] > 0 for point in points)
    assert last["exponent"] is not None
    assert last["stopped"] is None
    table = (tmp_path / "mixers.md").read_text()
    assert "| attention | T^" in table
    assert f"| attention | 128 | {points[-1]['forward_ms']:,.1f} |" in table
    assert (tmp_path / "mixers.png").stat().st_size > 1000


def test_a_misspelt_mixer_and_an_absent_device_are_refused(tmp_path: Path) -> None:
    ran = ossicle("bench", "mixer", "mixers=[atention]", cwd=tmp_path)
    assert ran.returncode == 2
    assert "did you mean attention" in ran.stderr
    if not torch.cuda.is_available():
        ran = ossicle("bench", "mixer", "device=cuda", cwd=tmp_path)
        assert ran.returncode == 2
        assert "device=cpu" in ran.stderr
