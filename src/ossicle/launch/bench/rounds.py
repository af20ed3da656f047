"""Systems that take turns, each in a process of its own: what disturbs a machine meanwhile disturbs all alike."""

import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from ossicle.core.errors import DataError, OssicleError
from ossicle.core.memory import peak_resident_bytes
from ossicle.launch.bench.ossicle import Stage
from ossicle.launch.bench.player import Player, halt
from ossicle.launch.bench.work import PREFETCH, System, Work

Staged = Callable[[Work, float], tuple[float, list[Stage]]]

_TICKS = os.sysconf("SC_CLK_TCK")
_QUIET_S = 0.25
_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Round:
    """What one system did in one round.

    Args:
        audio_s: Seconds of audio delivered.
        batches: Batches delivered.
        wall_s: Time that passed.
        cpu_s: Processor time of the system's process and its workers.
    """

    audio_s: float
    batches: int
    wall_s: float
    cpu_s: float


@dataclass(slots=True)
class Result:
    """What one system did.

    Args:
        absent: Why it was not measured, or None.
        rounds: Its rounds.
        peak_memory_bytes: Largest resident sets of its process and its workers, summed.
        stages: What its stages took, where it tells them.
        staged_audio_s: Seconds of audio that they were timed over.
    """

    absent: str | None = None
    rounds: list[Round] = field(default_factory=list)
    peak_memory_bytes: int | None = None
    stages: list[Stage] = field(default_factory=list)
    staged_audio_s: float = 0.0

    def rate(self) -> float:
        """Audio-seconds a second of wall time, the median of rounds."""
        return statistics.median(r.audio_s / r.wall_s for r in self.rounds)

    def cpu_rate(self) -> float:
        """Audio-seconds a second of processor time, the median of rounds."""
        return statistics.median(r.audio_s / r.cpu_s for r in self.rounds)

    def step_ms(self) -> float:
        """Milliseconds a batch, the median of rounds."""
        return statistics.median(1000 * r.wall_s / r.batches for r in self.rounds)


def compare(
    systems: Mapping[str, System],
    work: Mapping[str, Work],
    *,
    seconds: float,
    rounds: int,
    staged: Mapping[str, Staged],
) -> dict[str, Result]:
    """Measure systems at the same work, one at a time, over and over.

    Args:
        systems: Every system by its name.
        work: What each is asked for, by its name.
        seconds: Time in which each is measured, over all rounds.
        rounds: How often each has its turn.
        staged: What times the stages of a system, by its name.

    Returns:
        What each did, by name; one that lacks a package or fails has its reason.

    Raises:
        Stopped: Ctrl-C, with what each did until then; those that had no turn yet have that as their reason.
    """
    results = {name: Result() for name in systems}
    with ExitStack() as stack:
        players = {
            name: Player(partial(_play, system, work[name], staged.get(name))) for name, system in systems.items()
        }
        for player in players.values():
            stack.callback(player.end)
        for player in players.values():
            stack.callback(player.dismiss)  # before any is waited for
        try:
            _all_rounds(players, results, seconds / rounds, rounds)
            for name, player in players.items():
                if results[name].absent is None:
                    _finish(player, results[name], seconds / rounds if name in staged else None)
        except KeyboardInterrupt:
            raise halt(players.values(), results, lambda result: result.rounds) from None
    return results


def _all_rounds(players: Mapping[str, Player], results: Mapping[str, Result], seconds: float, rounds: int) -> None:
    for name, player in players.items():
        results[name].absent = player.ready()
    for _ in range(rounds):
        for name, player in players.items():
            if results[name].absent is not None:
                continue
            told = player.ask("round", seconds)
            if isinstance(told, Round):
                results[name].rounds.append(told)
            else:
                results[name].absent = str(told)


def _finish(player: Player, result: Result, stage_s: float | None) -> None:
    memory = player.ask("memory", 0.0)
    result.peak_memory_bytes = memory if isinstance(memory, int) else None
    if stage_s is not None:
        told = player.ask("stages", stage_s)
        if isinstance(told, tuple):
            result.staged_audio_s, result.stages = told


def _play(system: System, work: Work, staged: Staged | None, line: Connection, method: str) -> None:
    multiprocessing.set_start_method(method, force=True)  # for workers: a spawned process would spawn its own
    torch.set_num_threads(1)
    try:
        source = system(work)
        for _ in range(1 + PREFETCH * work.workers):
            _check(next(source), work)
        _settle()
    except OssicleError as error:
        line.send(f"{error.problem}: {error.mend}")
        return
    line.send(None)
    while True:
        try:
            what, seconds = line.recv()
        except EOFError:
            return
        if what == "round":
            line.send(_round(source, work, seconds))
        elif what == "memory":
            line.send(sum(peak_resident_bytes(process) for process in ("self", *_workers())))
        else:
            assert staged is not None
            line.send(staged(work, seconds))


def _check(batch_BS: Tensor, work: Work) -> None:
    if batch_BS.shape != (work.rows, work.crop_samples) or batch_BS.dtype != torch.float32:
        raise DataError(
            f"a batch is {batch_BS.dtype} of {tuple(batch_BS.shape)}, not float32 of {(work.rows, work.crop_samples)}",
            "report it: the systems are not asked for the same work",
        )


def _round(source: Iterator[Tensor], work: Work, seconds: float) -> Round:
    # what workers had read ahead is taken first, so that a turn measures reading and not what was in store
    for _ in range(PREFETCH * work.workers):
        next(source)
    device = torch.device(work.device)
    num_batches = num_rows = 0
    cpu_s, began = _cpu_s(), time.perf_counter()
    while time.perf_counter() < began + seconds:
        batch_BS = next(source).to(device, non_blocking=True)
        num_batches += 1
        num_rows += len(batch_BS)
    if device.type == "cuda":
        torch.cuda.synchronize()
    wall_s = time.perf_counter() - began
    cpu_s = _cpu_s() - cpu_s
    _settle()
    return Round(num_rows * work.crop_s, num_batches, wall_s, cpu_s)


def _workers() -> Sequence[str]:
    return [str(process.pid) for process in multiprocessing.active_children()]


def _cpu_s() -> float:
    """Processor time of this process and of its workers, those that ended included."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    running = 0
    for process in _workers():
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        running += int(fields[11]) + int(fields[12])
    return time.process_time() + ended.ru_utime + ended.ru_stime + running / _TICKS


def _settle() -> None:
    """Wait until workers have read ahead all that they may: they would take time from the next system's turn."""
    if not _workers():
        return
    ends = time.monotonic() + _PATIENCE_S
    before = -1.0
    while time.monotonic() < ends and (now := _cpu_s()) - before > _QUIET_S / 10:
        before = now
        time.sleep(_QUIET_S)
