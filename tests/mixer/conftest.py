from types import ModuleType

import pytest

from tests.lazy import forget_lazy_modules


@pytest.fixture
def speechbrain_rnn() -> ModuleType:
    """speechbrain's recurrent layers, without its lazy modules."""
    module: ModuleType = pytest.importorskip(
        "speechbrain.nnet.RNN", reason="speechbrain, which these layers are held to, is not installed"
    )
    forget_lazy_modules()
    return module
