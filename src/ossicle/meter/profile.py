"""What a profile says: time and calls of each kernel or operator by name, and what made the host wait for a GPU."""

from collections import Counter
from typing import Final

from torch.autograd import DeviceType
from torch.profiler import profile

RANGES: Final = ("Optimizer.", "ProfilerStep", "##")
"""Beginnings of ranges that are shown on a device too, where they would count their kernels again."""
WAITS: Final = ("Synchronize", "HostAlloc", "cudaMalloc", "cudaFree")
"""Parts of the names of calls that make a host wait for a GPU."""


def kernels(seen: profile, *, on_gpu: bool) -> tuple[Counter[str], Counter[str]]:
    """Microseconds and calls by name: of kernels on a GPU, without the gaps between them; else of operators alone.

    Args:
        seen: A profile that has ended.
        on_gpu: Whether the work was on a GPU.
    """
    times: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    for event in seen.events() or ():
        if event.device_type == wanted and not event.name.startswith(RANGES):
            times[event.name] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
            calls[event.name] += 1
    return times, calls


def waits(seen: profile) -> tuple[Counter[str], Counter[str]]:
    """Microseconds and calls of what made the host wait for a GPU, by name."""
    times: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in seen.events() or ():
        if event.device_type == DeviceType.CPU and any(part in event.name for part in WAITS):
            times[event.name] += event.self_cpu_time_total
            calls[event.name] += 1
    return times, calls


def table(times: Counter[str], calls: Counter[str], steps: int) -> list[str]:
    """Lines of milliseconds and calls a step, the longest first."""
    return [
        f"{microseconds / 1000 / steps:10.3f} {calls[name] / steps:8.1f}  {name[:150]}"
        for name, microseconds in times.most_common()
    ]
