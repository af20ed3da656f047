"""One mixer at one length: time, memory and multiply-accumulates of its forward and backward pass."""

import gc
import inspect
import math
import multiprocessing
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ossicle.core.errors import MissingExtraError
from ossicle.core.memory import keep_memory, peak_resident_bytes, return_memory
from ossicle.launch.bench.player import start
from ossicle.launch.parts import option
from ossicle.meter.flops import count_macs
from ossicle.mixer.base import Mixer, MixerFactory, build_mixers

_RESET_PEAK = "5"
_WARM_PASSES = 5
_FEW_FAULTS = 16


@dataclass(frozen=True, slots=True)
class Variant:
    """A mixer, by the numbers of its YAML or by others.

    Args:
        name: What it is called in ``conf/mixer``.
        numbers: What is said of it; goes before its YAML and before what is the same for every mixer.
    """

    name: str
    numbers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What its rows are called: ``summary kind=fast``."""
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.numbers.items())])


@dataclass(frozen=True, slots=True)
class Settings:
    """What is the same for every mixer.

    Args:
        dim: Width of the frames.
        heads: Heads of mixers that have some.
        rows: Rows of a batch.
        device: ``cpu`` or ``cuda``.
        dtype: Type of the frames; below float32 the mixer runs under autocast.
        threads: torch threads.
        repeats: Runs, of which the fastest counts.
        max_s: Longest that a forward and a backward pass may be expected to take.
        max_bytes: Most memory that the next length may be expected to need.
    """

    dim: int
    heads: int
    rows: int
    device: str
    dtype: torch.dtype
    threads: int
    repeats: int
    max_s: float
    max_bytes: float


@dataclass(frozen=True, slots=True)
class Point:
    """One mixer at one length.

    Args:
        frames: The length.
        forward_s: Time of a forward pass in evaluation.
        step_s: Time of a forward and a backward pass.
        peak_bytes: Most memory in use during them, beside what was in use before.
        macs: Multiply-accumulates of the forward pass's matrix products and convolutions.
    """

    frames: int
    forward_s: float
    step_s: float
    peak_bytes: int
    macs: int


def factory(variant: Variant, settings: Settings, frames: int) -> MixerFactory:
    """A mixer with the heads that are asked for, no dropout, and learned places for all frames, but for its numbers."""
    from hydra.utils import get_class

    node = option(variant.name, "mixer")
    cls = get_class(node.pop("_target_"))
    is_partial = node.pop("_partial_", False)
    known = inspect.signature(cls).parameters
    changes: dict[str, Any] = {"num_heads": settings.heads, "dropout": 0.0, "max_frames": frames}
    arguments = {**node, **{key: value for key, value in changes.items() if key in known}, **variant.numbers}
    return partial(cls, **arguments) if is_partial else cls(**arguments)


def measure(variant: Variant, lengths: Sequence[int], settings: Settings) -> tuple[list[Point], str | None]:
    """A mixer at growing lengths: on a CPU in a process of its own, which it may exhaust.

    A GPU's memory is counted by its allocator, and what does not fit is refused there, so that no process is started
    for it, which takes longer than the measurement.

    Returns:
        Its points, and why it was stopped before the last length, or None.
    """
    if settings.device == "cuda":
        told: list[Point | str | None] = []
        _run(variant, lengths, settings, told.append)
        torch.cuda.empty_cache()
    else:
        told = _told_apart(variant, lengths, settings)
    *points, stopped = told
    assert not isinstance(stopped, Point)
    return [point for point in points if isinstance(point, Point)], stopped


def _told_apart(variant: Variant, lengths: Sequence[int], settings: Settings) -> list[Point | str | None]:
    """What a process of its own told: points, and at the end why there are no more."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_run_apart, args=(variant, lengths, settings, theirs))
    start(process)
    theirs.close()
    told: list[Point | str | None] = []
    try:
        while not told or isinstance(told[-1], Point):
            told.append(ours.recv())
    except EOFError:
        process.join()
        return [*told, f"its process ended with {process.exitcode}: out of memory, most likely"]
    except KeyboardInterrupt:
        process.terminate()
        raise
    process.join()
    return told


def _run_apart(variant: Variant, lengths: Sequence[int], settings: Settings, line: Connection) -> None:
    keep_memory()  # as ossicle pretrain does: else the system clears every large tensor anew, and that is measured
    torch.set_num_threads(settings.threads)
    _run(variant, lengths, settings, line.send)


def _run(
    variant: Variant, lengths: Sequence[int], settings: Settings, tell: Callable[[Point | str | None], None]
) -> None:
    """Tell every point, and at the end why there are no more, or None."""
    try:
        points: list[Point] = []
        for frames, following in zip(lengths, [*lengths[1:], None], strict=True):
            points.append(_point(variant, frames, settings))
            tell(points[-1])
            stopped = None if following is None else beyond(points, following, settings)
            if stopped is not None or following is None:
                tell(stopped)
                return
    except MissingExtraError as error:
        tell(f"{error.problem}: {error.mend}")
    except Exception as error:  # noqa: BLE001  others are still to be measured: Triton's own errors are among them
        tell(f"{type(error).__name__}: {error}".splitlines()[0])


def beyond(points: Sequence[Point], following: int, settings: Settings) -> str | None:
    """Why the next length is not to be tried, or None.

    Time and memory are taken to grow as between the last two lengths, and with the square before that is known.

    Args:
        points: What was measured, at growing lengths.
        following: The next length.
        settings: What is too much.
    """
    last = points[-1]
    growth = following / last.frames
    power_s = power_bytes = 2.0
    if len(points) > 1:
        past = points[-2]
        spread = math.log(last.frames / past.frames)
        power_s = math.log(last.step_s / past.step_s) / spread
        power_bytes = math.log(max(1, last.peak_bytes) / max(1, past.peak_bytes)) / spread
    seconds = last.step_s * growth ** max(1.0, power_s)
    needed = last.peak_bytes * growth ** min(2.0, max(1.0, power_bytes))
    if max(last.step_s, seconds) > settings.max_s:
        return f"{last.frames} frames took {last.step_s:.2g} s, {following} might take {seconds:.2g} s"
    if needed > settings.max_bytes and last.peak_bytes > 2**28:
        return f"{following} frames might need {needed / 1e9:.1f} GB"
    return None


def _point(variant: Variant, frames: int, settings: Settings) -> Point:
    torch.manual_seed(0)
    (mixer,) = build_mixers(factory(variant, settings, frames), [settings.dim])
    mixer = mixer.to(settings.device)
    x_BTD = torch.randn(settings.rows, frames, settings.dim, device=settings.device, dtype=settings.dtype)
    before = _reset_peak(settings.device)
    # as in training: weights are float32, autocast says which operations are not, and casts are made in every pass
    with torch.autocast(settings.device, settings.dtype, settings.dtype != torch.float32, cache_enabled=False):
        forward_s = fastest(partial(_forward, mixer.eval(), x_BTD), settings)
        step_s = fastest(partial(_step, mixer.train(), x_BTD.requires_grad_()), settings)
    peak = _peak(settings.device) - before
    return Point(frames, forward_s, step_s, max(0, peak), macs_of(variant, frames, settings))


def macs_of(variant: Variant, frames: int, settings: Settings) -> int:
    """Multiply-accumulates of a forward pass, counted on tensors without memory."""
    with torch.device("meta"):
        (mixer,) = build_mixers(factory(variant, settings, frames), [settings.dim])
        x_BTD = torch.empty(settings.rows, frames, settings.dim)
    return count_macs(partial(mixer.eval(), x_BTD))


def _forward(mixer: nn.Module, x_BTD: torch.Tensor) -> None:
    with torch.no_grad():
        mixer(x_BTD)


def _step(mixer: Mixer, x_BTD: torch.Tensor) -> None:
    mixer.zero_grad()
    mixer(x_BTD).sum().backward()


def fastest(call: Callable[[], None], settings: Settings) -> float:
    """Time of the fastest of some runs: processor time on one thread of a CPU, else time that passed.

    Those before do not count: on a CPU as many as map new memory, up to five, else one. A process that keeps its memory
    needs a few passes before it has all that a long row takes, and training has many.
    """
    alone = settings.device == "cpu" and settings.threads == 1
    clock = time.process_time if alone else time.perf_counter
    for _ in range(_WARM_PASSES if settings.device == "cpu" else 1):
        faults = _page_faults()
        call()
        if _page_faults() - faults <= _FEW_FAULTS:
            break
    times: list[float] = []
    for _ in range(settings.repeats):
        _wait(settings.device)
        began = clock()
        call()
        _wait(settings.device)
        times.append(clock() - began)
        if times[-1] > settings.max_s:
            break  # one run says enough
    return min(times)


def _page_faults() -> int:
    """Pages that were mapped for this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _reset_peak(device: str) -> int:
    """Begin to watch memory anew; what is in use now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    gc.collect()
    return_memory()
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def _peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return peak_resident_bytes()


def exponent(points: Sequence[Point], first: int) -> float | None:
    """Slope of log time over log frames, by least squares, from ``first`` frames on; None for fewer than two points."""
    kept = [(math.log(p.frames), math.log(p.step_s)) for p in points if p.frames >= first]
    if len(kept) < 2:
        return None
    mean_x, mean_y = (sum(column) / len(kept) for column in zip(*kept, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in kept)
    return sum((x - mean_x) * (y - mean_y) for x, y in kept) / spread
