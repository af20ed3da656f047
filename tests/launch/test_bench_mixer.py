import dataclasses
import json
import mmap
from pathlib import Path

import pytest
import torch

from ossicle.core.errors import ConfigError
from ossicle.launch.bench.mixers import Point, Settings, Variant, beyond, exponent, factory, fastest, macs_of, measure
from ossicle.launch.bench.steps import device_name
from ossicle.launch.bench_mixer import chosen, record
from ossicle.mixer.base import build_mixers
from tests.launch.toy import ossicle

SETTINGS = Settings(
    dim=16, heads=2, rows=2, device="cpu", dtype=torch.float32, threads=1, repeats=1, max_s=5.0, max_bytes=1e9
)


def test_the_exponent_is_that_of_a_power_law() -> None:
    points = [Point(frames, 0.0, 3e-9 * frames**1.7, 0, 0) for frames in (100, 1000, 2000, 4000)]
    assert exponent(points, 1000) == pytest.approx(1.7)
    assert exponent(points[:1], 0) is None


def test_the_multiplications_of_attention_are_those_of_the_formula() -> None:
    assert macs_of(Variant("attention"), 50, SETTINGS) == 2 * (4 * 50 * 16 * 16 + 2 * 50 * 50 * 16)


def test_mixers_with_learned_places_get_one_for_every_frame_that_is_measured() -> None:
    assert macs_of(Variant("synthesizer_random"), 3000, SETTINGS) == 2 * (2 * 3000 * 16 * 16 + 2 * 3000 * 3000 * 16)


def test_a_mixer_that_needs_too_much_is_stopped_with_the_reason() -> None:
    slow = Settings(
        dim=16, heads=2, rows=2, device="cpu", dtype=torch.float32, threads=1, repeats=1, max_s=1e-9, max_bytes=1e9
    )
    points, stopped = measure(Variant("attention"), [20, 40], slow)
    assert [point.frames for point in points] == [20]
    assert stopped is not None
    assert "20 frames took" in stopped


@pytest.mark.parametrize("name", ["attention", "gru", "ligru", "polynomial"])
def test_in_bf16_a_mixer_runs_as_it_does_in_training(name: str) -> None:
    points, stopped = measure(Variant(name), [20, 40], dataclasses.replace(SETTINGS, dtype=torch.bfloat16))
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
    assert last["versions"]["torch"] == torch.__version__.partition("+")[0]
    said = {(each["device_name"], each["precision"], each["threads"], each["batch"]) for each in [*points, last]}
    assert said == {(device_name(torch.device("cpu")), "float32", 1, 1)}
    assert [point["mfu"] for point in points] == [None] * 3
    table = (tmp_path / "mixers.md").read_text()
    assert "| attention | T^" in table
    assert f"| attention | 128 | {points[-1]['forward_ms']:,.1f} |" in table
    assert (tmp_path / "mixers.png").stat().st_size > 1000


def test_a_gpu_whose_peak_is_known_has_its_share_of_it() -> None:
    found = record(Variant("attention"), Point(100, 0.5, 1.0, 7, 10**12), SETTINGS, "NVIDIA H100 80GB HBM3")
    assert found["flops_per_s"] == pytest.approx(4e12)
    assert found["mfu"] == pytest.approx(4e12 / 989.4e12)


@pytest.mark.parametrize(("growing", "runs"), [(0, 1 + 2), (3, 4 + 2), (100, 5 + 2)])
def test_runs_that_map_new_memory_do_not_count(growing: int, runs: int) -> None:
    kept: list[mmap.mmap] = []
    made = 0

    def call() -> None:
        nonlocal made
        made += 1
        if made <= growing:
            new = mmap.mmap(-1, 256 * mmap.PAGESIZE)  # not the allocator's, which may have kept what others gave back
            new.madvise(mmap.MADV_NOHUGEPAGE)
            for place in range(0, len(new), mmap.PAGESIZE):
                new[place] = 1
            kept.append(new)

    fastest(call, dataclasses.replace(SETTINGS, repeats=2))
    assert made == runs


VARIANTS = "mixers=[summary,{mixer: summary, kind: lite},{mixer: attention, num_heads: 8}]"


def test_mixers_with_numbers_have_rows_of_their_own_in_table_records_and_picture(tmp_path: Path) -> None:
    ran = ossicle(
        "bench", "mixer", VARIANTS, "lengths=[32,64]", "dim=16", "heads=2", "fit_from=32", "repeats=1",
        "out=records.json", "table=mixers.md", "figure=mixers.svg", cwd=tmp_path,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    labels = ["summary", "summary kind=lite", "attention num_heads=8"]
    records = json.loads((tmp_path / "records.json").read_text())
    assert [r["mixer"] for r in records if "exponent" in r] == labels
    numbers = {r["mixer"]: r["numbers"] for r in records if "frames" in r}
    assert numbers == dict(zip(labels, [{}, {"kind": "lite"}, {"num_heads": 8}], strict=True))
    macs = {(r["mixer"], r["frames"]): r["macs"] for r in records if "frames" in r}
    assert macs["summary", 32] != macs["summary kind=lite", 32]
    table = (tmp_path / "mixers.md").read_text()
    for label in labels:
        assert sum(line.startswith(f"| {label} |") for line in table.splitlines()) == 3  # growth, and two lengths
        assert f" {label} " in ran.stdout
    drawn = (tmp_path / "mixers.svg").read_text()
    assert all(f"<!-- {label} -->" in drawn for label in labels)


def test_what_an_entry_says_goes_before_what_all_have() -> None:
    assert build_mixers(factory(Variant("attention", {"num_heads": 8}), SETTINGS, 10), [16])[0].num_heads == 8
    assert build_mixers(factory(Variant("attention"), SETTINGS, 10), [16])[0].num_heads == 2


@pytest.mark.parametrize(
    ("mixers", "problem"),
    [
        ([{"mixer": "summary", "knd": "fast"}], r"mixers\[0\]\.knd: .* takes no such argument; did you mean kind"),
        (["attention", {"mixer": "summary", "kind": "fst"}], "kind=fst is no summary"),
        ([{"mixer": "convolution", "kernel": "wide"}], r"mixers\[0\]\.kernel=wide is not what it can be"),
        ([{"mixer": "attention", "num_heads": 5}], "num_heads=5 does not divide the width 16"),
        ([{"mixer": "sumary", "kind": "fast"}], "did you mean summary"),
        ([{"kind": "fast"}], r"mixers\[0\]=\{'kind': 'fast'\} names no mixer"),
        ([{"_target_": "ossicle.mixer.summary.Summary"}], r"mixers\[0\]=.* names a class"),
        ([{"mixer": "summary", "_partial_": False}], r"mixers\[0\]\._partial_ is no number"),
        (["pattern"], r"mixers\[0\] is a pattern"),
        (["summary", {"mixer": "summary"}], "mixers names summary twice"),
        ([], r"mixers=\[\] is no list"),
    ],
)
def test_entries_that_name_no_mixer_or_numbers_that_it_lacks_are_refused(mixers: list, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        chosen(mixers, SETTINGS)


def test_a_misspelt_mixer_and_an_absent_device_are_refused(tmp_path: Path) -> None:
    ran = ossicle("bench", "mixer", "mixers=[atention]", cwd=tmp_path)
    assert ran.returncode == 2
    assert "did you mean attention" in ran.stderr
    ran = ossicle("bench", "mixer", "mixers=[{mixer: summary, knd: fast}]", cwd=tmp_path)
    assert ran.returncode == 2
    assert "mixers[0].knd" in ran.stderr
    if not torch.cuda.is_available():
        ran = ossicle("bench", "mixer", "device=cuda", cwd=tmp_path)
        assert ran.returncode == 2
        assert "device=cpu" in ran.stderr
