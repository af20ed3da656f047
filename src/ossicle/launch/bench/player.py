"""A system that is measured, in a process of its own, and the line to it."""

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeVar

Play = Callable[[Connection, str], None]
"""What runs in the process: it is given its end of the line and the start method that its own workers take."""

INTERRUPTED = "it was interrupted before its first turn was over"

_END_S = 5.0


class Stopped(KeyboardInterrupt):
    """Ctrl-C, with what was measured until then.

    Args:
        results: What each system did, by name.
    """

    def __init__(self, results: Mapping[str, Any]) -> None:
        super().__init__()
        self.results = dict(results)


def start(process: BaseProcess) -> None:
    """Start a process that Ctrl-C does not reach: a terminal sends it to all, and who started the process ends it."""
    if threading.current_thread() is not threading.main_thread():
        process.start()
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the process inherits, its interpreter's start too
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)


class Player:
    """One system's process, seen from outside.

    Args:
        play: Runs there. It first sends None, or why it cannot be measured; then it answers what it is asked, until the
            line is closed.
    """

    def __init__(self, play: Play) -> None:
        # a fresh interpreter: what one system imports or starts does not weigh on another
        context = multiprocessing.get_context("spawn")
        self._line, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=play, args=(theirs, multiprocessing.get_start_method()))
        start(self._process)
        theirs.close()

    def ready(self) -> str | None:
        """Wait until the system stands; why it never will, or None."""
        told = self._told()
        return None if told is None else str(told)

    def ask(self, what: str, amount: float) -> object:
        """Have something done, and wait for what comes of it; why nothing does, where the process is no more."""
        try:
            self._line.send((what, amount))
        except OSError:  # it ended while nobody asked
            return self._ended()
        return self._told()

    def _told(self) -> object:
        try:
            return self._line.recv()
        except (EOFError, OSError):
            return self._ended()

    def _ended(self) -> str:
        self._process.join()
        code = self._process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return f"its process was ended by {name}" + (": out of memory, most likely" if name == "SIGKILL" else "")
        return f"its process ended with {code}; what it printed says why"

    def dismiss(self) -> None:
        """Let the process know that it may go."""
        self._line.close()

    def stop(self) -> None:
        """End the process in the middle of what it does."""
        self._process.terminate()

    def end(self) -> None:
        """Wait for the process to go, and end it where it stays."""
        self._process.join(_END_S)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()


class Outcome(Protocol):
    """What came of a system, or why nothing did."""

    absent: str | None


Found = TypeVar("Found", bound=Outcome)


def halt(players: Iterable[Player], results: Mapping[str, Found], measured: Callable[[Found], object]) -> Stopped:
    """End all systems in the middle of what they do.

    Args:
        players: Their processes.
        results: What each did, by name; one that was not measured is given that as its reason.
        measured: Whether a system had a turn.

    Returns:
        What to raise.
    """
    for player in players:
        player.stop()
    for result in results.values():
        result.absent = result.absent or (None if measured(result) else INTERRUPTED)
    return Stopped(results)
