"""A system that is measured, in a process of its own, and the line to it."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

Play = Callable[[Connection, str], None]
"""What runs in the process: it is given its end of the line and the start method that its own workers take."""

_END_S = 5.0


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
        self._process.start()
        theirs.close()

    def ready(self) -> str | None:
        """Wait until the system stands; why it never will, or None."""
        told = self._told()
        return None if told is None else str(told)

    def ask(self, what: str, amount: float) -> object:
        """Have something done, and wait for what comes of it."""
        self._line.send((what, amount))
        return self._told()

    def _told(self) -> object:
        try:
            return self._line.recv()
        except EOFError:
            self._process.join()
            return f"its process ended with {self._process.exitcode}; what it printed says why"

    def dismiss(self) -> None:
        """Let the process know that it may go."""
        self._line.close()

    def end(self) -> None:
        """Wait for the process to go, and end it where it stays."""
        self._process.join(_END_S)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()
