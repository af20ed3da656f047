"""Training steps that take turns, each system in a process of its own: what disturbs a machine disturbs all alike."""

import gc
import logging
import math
import platform
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from ossicle.core.errors import OssicleError
from ossicle.core.memory import peak_resident_bytes
from ossicle.launch.bench.player import Player, halt
from ossicle.launch.bench.rounds import Round
from ossicle.meter.energy import EnergyCounter

log = logging.getLogger(__name__)


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
        energy_reason: Why nothing says what energy it draws, where nothing does.
    """

    facts: Facts
    device_name: str
    first_step_s: float
    energy_reason: str | None = None


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
            times of these mean nothing. Else one after another, each of which has its first turn then: a system that
            compiles for minutes takes nothing from what was measured before it.

    Returns:
        What each did, by name; one that lacks a package or fails has its reason.

    Raises:
        Stopped: Ctrl-C, with what each did until then; those that had no turn yet have that as their reason.
    """
    results = {name: Measured() for name in builders}
    players: dict[str, Player] = {}
    with ExitStack() as stack:
        try:
            for name, build in builders.items():
                players[name] = player = Player(partial(play, build, work))
                stack.callback(player.end)
                stack.callback(player.dismiss)
                if not together:
                    _await_start(player, results[name])
                    _one_turn(name, player, results[name], steps)
            _all_turns(players, results, steps, rounds, together=together)
        except KeyboardInterrupt:
            raise halt(players.values(), results, lambda result: result.turns) from None
    return results


def _all_turns(
    players: Mapping[str, Player], results: Mapping[str, Measured], steps: int, rounds: int, *, together: bool
) -> None:
    """The turns of all that were begun, and what memory each took."""
    for name, player in players.items():
        if together:
            _await_start(player, results[name])
    for _ in range(rounds if together else rounds - 1):
        for name, player in players.items():
            _one_turn(name, player, results[name], steps)
    for name, player in players.items():
        if results[name].absent is None:
            memory = player.ask("memory", 0)
            results[name].peak_memory_bytes = memory if isinstance(memory, int) else None


def alone(build: Builder, work: StepWork, *, steps: int, rounds: int) -> Measured:
    """Measure one system in this process, which then gives its memory back: what a GPU's allocator lets it do.

    Args:
        build: What builds it.
        work: What it is asked for.
        steps: Timed steps of each turn.
        rounds: Its turns.
    """
    device = torch.device(work.device)
    result = Measured()
    threads = torch.get_num_threads()
    torch.set_num_threads(work.threads)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        subject, result.start = _begun(build, work)
        for _ in range(rounds):
            result.turns.append(_turn(subject, work, steps))
            if not result.turns[-1].finite:
                result.absent = "its loss is not a number"
        result.peak_memory_bytes = _peak(device)
    except Exception as error:  # noqa: BLE001  Triton's own errors are among them, and others are still to be measured
        result.absent = _reason(error)
    torch.set_num_threads(threads)
    subject = None
    torch.compiler.reset()  # the next one's graphs are not to be taken for this one's with other sizes
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return result


def _await_start(player: Player, result: Measured) -> None:
    result.absent = player.ready()
    if result.absent is not None:
        return
    told = player.ask("start", 0)
    if isinstance(told, Start):
        result.start = told
    else:
        result.absent = str(told)


def _one_turn(name: str, player: Player, result: Measured, steps: int) -> None:
    """A turn of a system that is there; what it did is told at once, for what follows may be cut off."""
    if result.absent is not None:
        return
    told = player.ask("turn", steps)
    if not isinstance(told, Turn):
        result.absent = str(told)
    elif not told.finite:
        result.absent = "its loss is not a number"
    else:
        result.turns.append(told)
        log.info("%s: %.5g audio-s/s", name, told.round.audio_s / told.round.wall_s)


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
        subject, start = _begun(build, work)
        line.send(None)
        while True:
            what, amount = line.recv()
            if what == "start":
                line.send(start)
            elif what == "turn":
                line.send(_turn(subject, work, int(amount)))
            else:
                line.send(_peak(device))
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001  others go on: Triton's own errors are among them
        line.send(_reason(error))


def _begun(build: Builder, work: StepWork) -> tuple[Subject, Start]:
    """A system after its first steps."""
    device = torch.device(work.device)
    subject = build(work)
    began = time.perf_counter()
    subject.step()
    _wait(device)
    first_step_s = time.perf_counter() - began
    for _ in range(work.warmup):
        subject.step()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the next system's first steps need the memory
    energy_reason = EnergyCounter.of_device(device).reason
    return subject, Start(subject.facts(), device_name(device), first_step_s, energy_reason)


def _reason(error: Exception) -> str:
    """Why a system was not measured: what it refused, or what memory or torch.compile did."""
    if isinstance(error, OssicleError):
        return f"{error.problem}: {error.mend}"
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident_bytes("self")


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
