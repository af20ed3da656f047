"""What speechbrain leaves behind."""

import sys
from types import ModuleType


def forget_lazy_modules() -> None:
    """Drop the modules that speechbrain leaves to be imported when they are looked at.

    Hypothesis looks at every module there is, and theirs raise where an optional package is missing.
    """
    for name, other in list(sys.modules.items()):
        if name.startswith("speechbrain") and type(other) is not ModuleType:
            del sys.modules[name]
