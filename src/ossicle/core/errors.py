"""Errors that a user can mend. Each says what is wrong and what to do about it."""


class OssicleError(Exception):
    """What is wrong, and the mend, in one message.

    Args:
        problem: What is wrong, naming the file, key or value.
        mend: What the user does about it.
    """

    def __init__(self, problem: str, mend: str) -> None:
        super().__init__(f"{problem}\n  -> {mend}")
        self.problem = problem
        self.mend = mend

    def __reduce__(self) -> tuple[type["OssicleError"], tuple[str, ...]]:
        """Pickle by both parts, so that an error crosses process borders whole."""
        return type(self), (self.problem, self.mend)


class ConfigError(OssicleError):
    """A config names what does not exist, or parts that do not fit each other."""


class DataError(OssicleError):
    """Audio, shards, an index or labels are missing, damaged or of the wrong kind."""


class MissingExtraError(OssicleError):
    """A part needs a package that is not installed.

    Args:
        package: The package that failed to import.
        extra: The extra of this project that brings it.
        purpose: What it is needed for.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}", f"pip install 'ossicle[{extra}]'")
        self.arguments = (package, extra, purpose)

    def __reduce__(self) -> tuple[type["MissingExtraError"], tuple[str, ...]]:
        """Pickle by the constructor's own arguments."""
        return type(self), self.arguments


class CollapseError(OssicleError):
    """Training has collapsed: the run stops rather than burn hours on a dead model."""
