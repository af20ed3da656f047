import sys
from types import ModuleType

import pytest


@pytest.fixture
def speechbrain_rnn() -> ModuleType:
    """speechbrain's recurrent layers, without the modules that it leaves to be imported when they are looked at.

    Hypothesis looks at every module there is, and theirs raise where an optional package is missing.
    """
    module: ModuleType = pytest.importorskip(
        "speechbrain.nnet.RNN", reason="speechbrain, which these layers are held to, is not installed"
    )
    for name, other in list(sys.modules.items()):
        if name.startswith("speechbrain") and type(other) is not ModuleType:
            del sys.modules[name]
    return module
