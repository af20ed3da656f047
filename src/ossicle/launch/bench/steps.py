"""Training steps that take turns, each system in a process of its own: what disturbs a machine disturbs all alike."""

import math
import platform
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ossicle.core.errors import OssicleError
from ossicle.core.memory import peak_resident_bytes
from ossicle.launch.bench.player import Player
from ossicle.launch.bench.rounds import Round
from ossicle.meter.energy import EnergyCounter
from ossicle.meter.flops import peak_flops

PACKAGES = ("ossicle", "torch", "torchaudio", "transformers", "speechbrain", "minimal-hubert", "spidr", "triton")

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StepWork:
    """The work of a step, the same for every system.

    Args:
        batch: Crops (B).
        samples: Samples of a crop (S).
        rate_hz: Samples a second.
        device: ``cpu`` or ``cuda``.
        threads: torch threads of the process.
        seed: Seeds what is random.
        warmup: Steps after the first that are not timed.
        bfloat16: Whether matrix products are bfloat16 (autocast; the weights stay float32), where a system is told.
        compile: Whether torch.compile is asked for, where a system is told.
        compile_mode: Its mode then.
    """

    batch: int
    samples: int
    rate_hz: int
    device: str
    threads: int
    seed: int
    warmup: int
    bfloat16: bool = False
    compile: bool = False
    compile_mode: str = "default"

    @property
    def audio_s(self) -> float:
        """Seconds of audio in a step."""
        return self.batch * self.samples / self.rate_hz

    def waveforms(self) -> Tensor:
        """Random audio on the device, float32, shape (B, S)."""
        drawn_BS = torch.randn(self.batch, self.samples, generator=torch.Generator().manual_seed(self.seed))
        return (0.1 * drawn_BS).to(self.device)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a system says of itself.

    Args:
        params: Parameters that are trained.
        macs_per_audio_s: Multiply-accumulates of the encoder's forward pass a second of audio, or why they are unknown.
        precision: Precision of its matrix products.
        compiled: Whether torch.compile was used.
        note: What its step includes, and what not.
    """

    params: int
    macs_per_audio_s: float | str
    precision: str
    compiled: bool
    note: str


class Subject(ABC):
    """A model with its loss and optimiser on one batch that stays on the device."""

    @abstractmethod
    def step(self) -> Tensor:
        """Forward, backward, clipping and the optimiser's step, once. Returns the loss, without waiting for it."""

    @abstractmethod
    def facts(self) -> Facts:
        """What is known of it."""


Builder = Callable[[StepWork], Subject]
"""Builds a system in its own process.

Raises:
    OssicleError: It cannot do this work, or a package is not installed.
"""


@dataclass(frozen=True, slots=True)
class Start:
    """What came of building a system and of its first steps.

    Args:
        facts: What it says of itself.
        device_name: The device's name.
        first_step_s: Time of the first step, in which things are compiled.
    """

    facts: Facts
    device_name: str
    first_step_s: float


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn.

    Args:
        round: Audio and time.
        joules: Energy that the GPU drew meanwhile, or None.
        finite: Whether the last loss is a number.
    """

    round: Round
    joules: float | None
    finite: bool


@dataclass(slots=True)
class Measured:
    """What one system did.

    Args:
        absent: Why it was not measured, or None.
        start: How it began.
        turns: Its turns.
        peak_memory_bytes: Most GPU memory in use by tensors; on a CPU the largest resident set of its process.
    """

    absent: str | None = None
    start: Start | None = None
    turns: list[Turn] = field(default_factory=list)
    peak_memory_bytes: int | None = None

    def rate(self) -> float:
        """Audio-seconds a second of wall time, the median of turns."""
        return statistics.median(turn.round.audio_s / turn.round.wall_s for turn in self.turns)

    def cpu_rate(self) -> float:
        """Audio-seconds a second of processor time, the median of turns."""
        return statistics.median(turn.round.audio_s / turn.round.cpu_s for turn in self.turns)

    def step_s(self) -> float:
        """Seconds a step, the median of turns."""
        return statistics.median(turn.round.wall_s / turn.round.batches for turn in self.turns)

    def joules_per_audio_s(self) -> float | None:
        """Joules a second of audio over all turns, or None where nothing counts them."""
        joules = [turn.joules for turn in self.turns if turn.joules is not None]
        if len(joules) < len(self.turns):
            return None
        return sum(joules) / sum(turn.round.audio_s for turn in self.turns)


def take_turns(
    builders: Mapping[str, Builder], work: StepWork, *, steps: int, rounds: int, together: bool = False
) -> dict[str, Measured]:
    """Measure systems at the same work, one at a time, over and over.

    Args:
        builders: What builds each system, by its name.
        work: What all are asked for.
        steps: Timed steps of each turn.
        rounds: How often each has its turn.
        together: Whether all are built at the same time, which takes memory for all first steps at once and makes the
            times of these mean nothing. Else one after another.

    Returns:
        What each did, by name; one that lacks a package or fails has its reason.
    """
    results = {name: Measured() for name in builders}
    with ExitStack() as stack:
        players: dict[str, Player] = {}
        for name, build in builders.items():
            players[name] = player = Player(partial(play, build, work))
            stack.callback(player.end)
            stack.callback(player.dismiss)
            if not together:
                _await_start(player, results[name])
        for name, player in players.items():
            if together:
                _await_start(player, results[name])
        for _ in range(rounds):
            for name, player in players.items():
                if results[name].absent is None:
                    _one_turn(player, results[name], steps)
        for name, player in players.items():
            if results[name].absent is None:
                memory = player.ask("memory", 0)
                results[name].peak_memory_bytes = memory if isinstance(memory, int) else None
    return results


def _await_start(player: Player, result: Measured) -> None:
    result.absent = player.ready()
    if result.absent is not None:
        return
    told = player.ask("start", 0)
    if isinstance(told, Start):
        result.start = told
    else:
        result.absent = str(told)


def _one_turn(player: Player, result: Measured, steps: int) -> None:
    told = player.ask("turn", steps)
    if not isinstance(told, Turn):
        result.absent = str(told)
    elif not told.finite:
        result.absent = "its loss is not a number"
    else:
        result.turns.append(told)


def play(build: Builder, work: StepWork, line: Connection, method: str) -> None:
    """Build a system and answer for it, in its own process.

    Args:
        build: Builds it.
        work: What it is asked for.
        line: Where questions come from: ``start``, ``turn`` (with a number of steps) and ``memory``.
        method: Start method of workers, of which a step has none.
    """
    del method
    torch.set_num_threads(work.threads)
    device = torch.device(work.device)
    try:
        subject = build(work)
        began = time.perf_counter()
        subject.step()
        _wait(device)
        first_step_s = time.perf_counter() - began
        for _ in range(work.warmup):
            subject.step()
        if device.type == "cuda":
            torch.cuda.empty_cache()  # the next system's first steps need the memory
        start = Start(subject.facts(), device_name(device), first_step_s)
        line.send(None)
        while True:
            what, amount = line.recv()
            if what == "start":
                line.send(start)
            elif what == "turn":
                line.send(_turn(subject, work, int(amount)))
            else:
                line.send(torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_resident_bytes("self"))
    except EOFError:
        return
    except OssicleError as error:
        line.send(f"{error.problem}: {error.mend}")
    except (RuntimeError, MemoryError) as error:  # out of memory, or what torch.compile refuses
        line.send(f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")


def _turn(subject: Subject, work: StepWork, steps: int) -> Turn:
    device = torch.device(work.device)
    counter = EnergyCounter.of_device(device)
    if device.type == "cuda":
        subject.step()  # takes anew the memory that was given back after the turn before
    _wait(device)
    joules = counter.joules()
    began, began_cpu = time.perf_counter(), time.process_time()
    for _ in range(steps - 1):
        subject.step()
    loss = subject.step()
    _wait(device)
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    after = counter.joules()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the next system's turn needs the memory
    drawn = None if joules is None or after is None else after - joules
    return Turn(Round(steps * work.audio_s, steps, wall_s, cpu_s), drawn, math.isfinite(loss.item()))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """The GPU's or the CPU's name, as it calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


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
    }


def _speed_record(result: Measured, start: Start) -> Record:
    """Speeds. FLOPs of a step are three forward passes of the encoder, two a multiply-accumulate, as in cost cards."""
    macs = start.facts.macs_per_audio_s
    flops = 6 * macs * result.rate() if isinstance(macs, float) else None
    peak = peak_flops(start.device_name)
    joules = result.joules_per_audio_s()
    step_s = result.step_s()
    return {
        "audio_s_per_s": result.rate(),
        "audio_s_per_cpu_s": result.cpu_rate(),
        "step_ms": 1000 * step_s,
        "compile_s": max(0.0, start.first_step_s - step_s) if start.facts.compiled else None,
        "flops_per_s": flops,
        "mfu": flops / peak if flops is not None and peak is not None else None,
        "energy_kwh_per_audio_h": joules / 1000 if joules is not None else None,
        "rounds": [turn.round.audio_s / turn.round.wall_s for turn in result.turns],
        "cpu_rounds": [turn.round.audio_s / turn.round.cpu_s for turn in result.turns],
    }


def versions() -> dict[str, str | None]:
    """What the systems are, by version; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
