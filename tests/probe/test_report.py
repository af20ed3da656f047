import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from ossicle.probe.report import Outcome, ProbeReport, TaskNote, render, summarise


@pytest.fixture
def outcome() -> Callable[..., Outcome]:
    def make(layer: str, seed: int, errors: list[float], selection: float) -> Outcome:
        return Outcome(layer, seed, np.array(errors), np.full(len(errors), 10.0), selection, 100, 0.5)

    return make


def test_the_layer_is_chosen_by_selection_error_and_never_by_the_test(outcome: Callable[..., Outcome]) -> None:
    outcomes = [
        outcome("0", 0, [5, 5], 0.2),
        outcome("0", 1, [4, 4], 0.3),
        outcome("1", 0, [1, 1], 0.4),  # better on the test, worse where layers are chosen
        outcome("1", 1, [1, 1], 0.4),
    ]
    row = summarise("phone", "pretrained", outcomes)
    assert (row.layer, row.num_seeds) == ("0", 2)
    assert row.error == pytest.approx(0.45)
    assert row.selection_error == pytest.approx(0.25)
    assert row.error_low <= row.error <= row.error_high


def test_a_record_states_error_interval_and_speech_error(outcome: Callable[..., Outcome]) -> None:
    made = replace(outcome("2", 7, [1, 2, 3], 0.1), speech_errors_U=np.ones(3), speech_counts_U=np.full(3, 5.0))
    record = made.record("phone", "mfcc")
    assert (record.task, record.feature, record.layer, record.seed) == ("phone", "mfcc", "2", 7)
    assert record.error == pytest.approx(0.2)
    assert record.accuracy == pytest.approx(0.8)
    assert record.error_low < 0.2 < record.error_high
    assert record.error_speech == pytest.approx(0.2)
    assert record.num_test == 30


def test_the_table_shows_every_feature_and_marks_the_least_error(outcome: Callable[..., Outcome]) -> None:
    summary = tuple(
        summarise("phone", name, [outcome("0", 0, [value] * 4, 0.1)])
        for name, value in (("logmel", 5), ("pretrained", 2))
    )
    report = ProbeReport((), summary, (TaskNote("phone", 40, 0.9), TaskNote("ctc", remarks=("not run",))))
    text = io.StringIO()
    Console(file=text, width=120, color_system=None).print(render(report))
    shown = text.getvalue()
    assert "logmel" in shown
    assert "20.0 ±0.0 (0)" in shown
    assert "90.0" in shown
    assert "ctc" not in shown
    assert report.errors("phone") == {"logmel": pytest.approx(0.5), "pretrained": pytest.approx(0.2)}
    assert report.interval("phone", "logmel").error == pytest.approx(0.5)
