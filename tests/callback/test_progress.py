import io
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from ossicle.callback import progress
from ossicle.callback.checkpoints import Checkpoints
from ossicle.callback.progress import ProgressLine
from tests.system.toys import toy_run


def test_without_a_terminal_a_line_is_printed_at_every_reading(tmp_path: Path) -> None:
    output = io.StringIO()
    toy_run(tmp_path, (partial(ProgressLine, console=Console(file=output)),), max_steps=5, log_every=2)
    lines = output.getvalue().splitlines()
    assert [line.split()[:3] for line in lines] == [["toy", "step", f"{step}/5"] for step in (2, 4, 5)]
    assert all(word in lines[0] for word in ("loss", "audio-s/s", "ETA"))
    assert lines[-1].endswith("ETA 0:00:00")


def test_on_a_terminal_a_bar_is_drawn_and_closed(tmp_path: Path) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120)
    toy_run(tmp_path, (partial(ProgressLine, console=console),), max_steps=4, log_every=2)
    assert "step 4/4" in output.getvalue()
    assert "\x1b[?25h" in output.getvalue()  # the cursor is shown again


def test_the_time_left_follows_from_the_steps_since_the_last_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    line = ProgressLine(run_dir=tmp_path, config={})
    now[0] = 20.0
    assert line.line({}, 10, 100).endswith("ETA 0:03:00")
    now[0] = 25.0
    assert line.line({"objective/loss": 1.5}, 20, 100) == "step 20/100  loss 1.5000  ETA 0:00:40"


def test_a_resumed_run_counts_its_speed_from_where_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saving = partial(Checkpoints, every_steps=4, keep=1)
    toy_run(tmp_path, (saving,), max_steps=4)
    now = [0.0]

    class Ticking(ProgressLine):
        def on_train_batch_end(self, *_: object) -> None:
            now[0] += 10.0  # seconds a step

    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    output = io.StringIO()
    line = partial(Ticking, console=Console(file=output))
    toy_run(tmp_path, (line,), tmp_path / "checkpoints" / "last.ckpt", max_steps=10, log_every=3)
    # the first reading comes at the end of step 6, before the callbacks hear of that end
    assert output.getvalue().splitlines()[0].endswith("ETA 0:00:20")
