"""Trying again: what passes is tried a bounded number of times, what stays is refused at once."""

import errno
import logging
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ossicle.core.errors import DataError

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_PERMANENT_ERRNO = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EPERM, errno.ENOENT, errno.EACCES}
)
_NO_ACCOUNT = frozenset({"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"})
# Clients of object stores raise their own errors, which are no OSError; a client that was not imported raised none.
_CLIENT_ERRORS = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("http.client", "HTTPException"),
    ("httpx", "HTTPError"),
)
_PASSING_STATUS = frozenset({408, 425, 429})
_MOST_DAMAGED = 2
_DEVICE = random.SystemRandom()  # jitter must differ between processes that a server's failure has put in step


class ShortReadError(OSError):
    """Fewer bytes came than were asked for."""


class DamagedReadError(OSError):
    """As many bytes came as were asked for, and they are not those that were written."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how patiently a read is tried again.

    The pause before try n + 1 is ``first_s * 2**(n - 1)``, at most ``longest_s``, times a random number in [0.5, 1], so
    that the processes of a job do not come back all at once. Bytes that are damaged twice are not tried a third time.

    Args:
        tries: How often a read is tried in all.
        first_s: Pause after the first failure, in seconds.
        longest_s: Longest pause, in seconds.
    """

    tries: int = 6
    first_s: float = 0.5
    longest_s: float = 30.0

    def call(self, what: str, action: Callable[[], _T]) -> _T:
        """Carry out an action, again where it failed for a reason that may pass.

        Args:
            what: What is done, for the error: "reading s3://...".
            action: Does it; called again after a failure.

        Raises:
            DataError: It failed for good, or ``tries`` times.
        """
        damaged = 0
        for number in range(1, self.tries + 1):
            try:
                return action()
            except client_errors() as error:
                damaged += isinstance(error, DamagedReadError)
                if is_permanent(error):
                    raise DataError(f"{what} failed: {_said(error)}", _MEND) from error
                if number == self.tries or damaged == _MOST_DAMAGED:
                    raise DataError(f"{what} failed {number} times, at last: {_said(error)}", _MEND) from error
                pause_s = min(self.longest_s, self.first_s * 2 ** (number - 1)) * _DEVICE.uniform(0.5, 1.0)
                _LOG.info("%s failed (%s); again in %.1f s", what, _said(error), pause_s)
            time.sleep(pause_s)
        raise DataError(f"{what} was tried {self.tries} times", "give at least one try")


_MEND = "check the address, the server and your rights there"


def client_errors() -> tuple[type[Exception], ...]:
    """What reading a file may raise, of Python itself and of the clients that are in use in this process."""
    present = [(sys.modules[module], name) for module, name in _CLIENT_ERRORS if module in sys.modules]
    return (OSError, EOFError, *(vars(module)[name] for module, name in present if name in vars(module)))


def is_permanent(error: Exception) -> bool:
    """Whether trying again cannot help: the file is not there, or may not be read, or the request makes no sense."""
    if isinstance(error, ShortReadError | DamagedReadError | ConnectionError | TimeoutError):
        return False
    status = http_status(error)
    if status is not None:
        return 400 <= status < 500 and status not in _PASSING_STATUS
    if type(error).__name__ in _NO_ACCOUNT or isinstance(error, _PERMANENT):
        return True
    return isinstance(error, OSError) and error.errno in _PERMANENT_ERRNO


def http_status(error: BaseException) -> int | None:
    """The HTTP status that a client's error carries, or None.

    An ``OSError`` that a client made of its own error is looked behind, others are not: aiohttp says that a body broke
    off by an error whose cause, its parser's, carries a 400 that no server sent.
    """
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        found = getattr(response, "status_code", getattr(error, "status", None))
        if found is None and type(error).__name__ == "HttpError":  # gcsfs's
            found = getattr(error, "code", None)
    if isinstance(found, int):
        return found
    behind = error.__cause__ if isinstance(error, OSError) else None
    return None if behind is None else http_status(behind)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
