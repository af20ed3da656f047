import gzip
import json
from functools import partial
from pathlib import Path

import pytest
import torch

from ossicle.callback.trace import Trace
from ossicle.core.errors import ConfigError
from tests.system.toys import toy_run


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_few_steps_are_profiled_with_what_stands_around_them(tmp_path: Path) -> None:
    toy_run(tmp_path, (partial(Trace, after_step=2, steps=3),), max_steps=7, accumulate=2)
    head, what, *rows = (tmp_path / "trace-0.txt").read_text().splitlines()
    assert head.startswith("3 steps of ")
    assert what == "operators, ms and calls a step:"
    times = [float(row.split()[0]) for row in rows]
    assert times == sorted(times, reverse=True)
    step_ms, busy_ms = float(head.split()[3]), float(head.split()[7])
    assert 0 < busy_ms == pytest.approx(sum(times), rel=0.02, abs=0.05)
    assert busy_ms < 2 * step_ms  # operators of two threads at once
    calls = {row.split(maxsplit=2)[2]: float(row.split()[1]) for row in rows}
    assert calls["aten::_fused_adamw_"] == 2  # parameters with decay, and those without
    with gzip.open(tmp_path / "trace-0.json.gz") as file:
        assert any(event.get("name") == "aten::_fused_adamw_" for event in json.load(file)["traceEvents"])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_that_ends_before_has_no_profile(tmp_path: Path) -> None:
    toy_run(tmp_path, (partial(Trace, after_step=5, steps=3),), max_steps=4)
    assert not list(tmp_path.glob("trace-*"))


def test_numbers_that_profile_nothing_are_refused(tmp_path: Path) -> None:
    for wrong in ({"after_step": -1}, {"steps": 0}):
        with pytest.raises(ConfigError, match="profile nothing"):
            Trace(run_dir=tmp_path, config={}, **wrong)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_on_a_gpu_kernels_are_told_and_what_made_the_host_wait(tmp_path: Path) -> None:
    toy_run(tmp_path, (partial(Trace, after_step=2, steps=2),), max_steps=6, accelerator="cuda", precision="bf16-mixed")
    lines = (tmp_path / "trace-0.txt").read_text().splitlines()
    assert "kernels" in lines[0]
    assert "what made the host wait, ms and calls a step:" in lines
