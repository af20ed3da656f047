"""What is written of a system whose steps were measured."""

import platform
from typing import Any

import torch

from ossicle.launch.bench.steps import Measured, Start, StepWork
from ossicle.meter.flops import peak_flops
from ossicle.system.provenance import installed

PACKAGES = ("ossicle", "torch", "torchaudio", "transformers", "speechbrain", "minimal-hubert", "spidr", "triton")

Record = dict[str, Any]


def record(name: str, result: Measured, work: StepWork) -> Record:
    """What is written of one system: figures that were measured or counted, and None where there is none."""
    found: Record = {
        "system": name,
        "device": work.device,
        "batch": work.batch,
        "crop_s": work.samples / work.rate_hz,
        "threads": work.threads,
        "absent": result.absent,
        "audio_s_per_s": None,
        "step_ms": None,
        "peak_memory_bytes": result.peak_memory_bytes,
        "mfu": None,
    }
    if result.start is not None:
        found |= _start_record(result.start)
    if result.start is not None and result.turns and result.absent is None:
        found |= _speed_record(result, result.start)
    return found


def _start_record(start: Start) -> Record:
    facts = start.facts
    known = isinstance(facts.macs_per_audio_s, float)
    return {
        "device_name": start.device_name,
        "precision": facts.precision,
        "compile": facts.compiled,
        "params": facts.params,
        "macs_per_audio_s": facts.macs_per_audio_s if known else None,
        "macs_reason": None if known else facts.macs_per_audio_s,
        "note": facts.note,
        "first_step_s": start.first_step_s,
        "energy_reason": start.energy_reason,
    }


def _speed_record(result: Measured, start: Start) -> Record:
    """Speeds. FLOPs of a step are three forward passes of the encoder, two a multiply-accumulate, as in cost cards."""
    macs = start.facts.macs_per_audio_s
    flops = 6 * macs * result.rate() if isinstance(macs, float) else None
    peak = peak_flops(start.device_name)
    unknown = macs if isinstance(macs, str) else f"nothing here knows the peak of {start.device_name}"
    joules = result.joules_per_audio_s()
    step_s = result.step_s()
    return {
        "audio_s_per_s": result.rate(),
        "audio_s_per_cpu_s": result.cpu_rate(),
        "step_ms": 1000 * step_s,
        "compile_s": max(0.0, start.first_step_s - step_s) if start.facts.compiled else None,
        "flops_per_s": flops,
        "mfu": flops / peak if flops is not None and peak is not None else None,
        "mfu_reason": None if flops is not None and peak is not None else unknown,
        "energy_kwh_per_audio_h": joules / 1000 if joules is not None else None,
        "rounds": [turn.round.audio_s / turn.round.wall_s for turn in result.turns],
        "cpu_rounds": [turn.round.audio_s / turn.round.cpu_s for turn in result.turns],
    }


def versions() -> dict[str, str | None]:
    """What the systems are, by version; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    return found | {package: installed(package) for package in PACKAGES}
