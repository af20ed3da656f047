"""Where the time of a bare step goes: its rate, and the time of every kernel by name.

    PYTHONPATH=src:. python benchmarks/profile_step.py --device cuda --batch 64 --out step.txt hubert_base compile=true

Words are an experiment and its overrides. On a GPU the kernels' own time is told, without the gaps between them; on a
CPU the time of operators, without what they call.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from ossicle.launch.bench.bare import BareStep
from ossicle.launch.bench.steps import StepWork
from ossicle.launch.config import compose
from ossicle.launch.experiment import resolved
from ossicle.meter.profile import kernels, table


def built(options: argparse.Namespace) -> BareStep:
    """The step, none of whose blocks is left out: each then has the same work."""
    experiment, *overrides = options.words
    same = ["data=shards", "data.shards=null", f"cluster.accelerator={options.device}", "encoder.layer_drop=0"]
    config = resolved(compose("pretrain", [f"experiment={experiment}", *same, *overrides]))
    samples = round(options.crop_s * 16_000)
    work = StepWork(options.batch, samples, 16_000, options.device, torch.get_num_threads(), seed=0, warmup=0)
    return BareStep(config, work)


def rate(step: BareStep, steps: int) -> float:
    """Seconds a step, after some that are not counted."""
    for _ in range(4):
        step.step()
    settle(step)
    began = time.perf_counter()
    for _ in range(steps):
        step.step()
    settle(step)
    return (time.perf_counter() - began) / steps


def settle(step: BareStep) -> None:
    """Wait for the device."""
    if step.device.type == "cuda":
        torch.cuda.synchronize()


def profiled(step: BareStep, steps: int) -> profile:
    """The profile of some steps."""
    on_gpu = step.device.type == "cuda"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities, acc_events=True) as seen:
        for _ in range(steps):
            step.step()
        settle(step)
    return seen


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    parser.add_argument("--batch", type=int, default=2, help="crops in a step")
    parser.add_argument("--crop-s", type=float, default=15.6)
    parser.add_argument("--steps", type=int, default=8, help="steps that are timed")
    parser.add_argument("--profiled", type=int, default=2, help="steps that are profiled after them")
    parser.add_argument("--out", type=Path, required=True, help="text file")
    parser.add_argument("words", nargs="+", help="an experiment and its overrides")
    options = parser.parse_args(argv)
    step = built(options)
    began = time.perf_counter()
    step.step()
    settle(step)
    first_s = time.perf_counter() - began
    step_s = rate(step, options.steps)
    audio_s = options.batch * options.crop_s
    times, calls = kernels(profiled(step, options.profiled), on_gpu=step.device.type == "cuda")
    what = f"{options.batch} x {options.crop_s:g} s on {options.device}, torch {torch.__version__}"
    head = [
        f"{' '.join(options.words)}: {what}",
        f"{1000 * step_s:.2f} ms a step, {audio_s / step_s:,.0f} audio-s/s; the first step took {first_s:.1f} s",
        f"{sum(times.values()) / 1000 / options.profiled:.2f} ms of kernels a step; ms and calls a step:",
    ]
    rows = table(times, calls, options.profiled)
    options.out.write_text("\n".join([*head, *rows]) + "\n", encoding="utf-8")
    sys.stdout.write("\n".join([*head, *rows[:20]]) + "\n")


if __name__ == "__main__":
    main()
