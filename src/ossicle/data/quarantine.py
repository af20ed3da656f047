"""A log of inputs that could not be used: named, counted, and a stop when they are too many."""

import json
import logging
import os
from pathlib import Path

from ossicle.core.errors import DataError

_LOG = logging.getLogger(__name__)
_MIN_SEEN = 20


class Quarantine:
    """Counts good and bad inputs, and writes each bad one down as a line of JSON.

    Several processes may append to one file: each line is a single write to a file opened for appending. Each process
    judges the fraction by what it has seen itself.

    Args:
        path: The log, made when the first bad input comes; None keeps no log.
        max_fraction: Fraction of bad inputs above which the run stops, once 20 inputs have been seen.
    """

    def __init__(self, path: Path | None, max_fraction: float) -> None:
        self.path = path
        self.max_fraction = max_fraction
        self.num_bad = 0
        self.num_seen = 0

    def add(self, name: str, reason: str) -> None:
        """Write down a bad input.

        Args:
            name: The file or utterance.
            reason: What is wrong with it.

        Raises:
            DataError: More than ``max_fraction`` of the inputs were bad.
        """
        self.num_bad += 1
        self.num_seen += 1
        name, reason = (text.encode("utf-8", "backslashreplace").decode() for text in (name, reason))
        _LOG.warning("left out %s: %s", name, reason)
        if self.path is not None:
            self._append(self.path, log_line(name, reason))
        if self.num_seen >= _MIN_SEEN and self.num_bad > self.max_fraction * self.num_seen:
            where = "" if self.path is None else f"; {self.path} names them"
            problem = f"{self.num_bad} of {self.num_seen} inputs are bad (the last: {name}: {reason}){where}"
            raise DataError(problem, f"mend the inputs, or allow more than max_bad_fraction={self.max_fraction}")

    def ok(self, n: int = 1) -> None:
        """Count n good inputs."""
        self.num_seen += n

    @staticmethod
    def _append(path: Path, line: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


def log_line(name: str, reason: str) -> bytes:
    """A bad input as a line of the log."""
    entry = {"name": name, "reason": reason}
    return json.dumps(entry, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
