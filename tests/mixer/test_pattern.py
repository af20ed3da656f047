from functools import partial

import pytest
import torch

from ossicle.core.errors import ConfigError
from ossicle.encoder.transformer import Transformer
from ossicle.mixer.attention import Attention
from ossicle.mixer.pattern import Pattern


def test_a_pattern_repeats_over_the_layers() -> None:
    pattern = Pattern([partial(Attention, num_heads=2), partial(Attention, num_heads=4)])
    encoder = Transformer(pattern, dim=16, num_layers=5, ffn_dim=32, position_kernel=4, position_groups=2)
    assert [block.mixer.num_heads for block in encoder.blocks] == [2, 4, 2, 4, 2]
    assert encoder(torch.randn(2, 7, 16)).last_BTD.shape == (2, 7, 16)


def test_a_pattern_gives_every_layer_its_own_width_and_its_own_weights() -> None:
    mixers = Pattern([partial(Attention, num_heads=2)]).build([8, 16])
    assert [mixer.query.weight.shape[0] for mixer in mixers] == [8, 16]
    assert mixers[0] is not mixers[1]


def test_stacks_inside_a_pattern_see_the_layers_that_are_theirs() -> None:
    inner = Pattern([partial(Attention, num_heads=1), partial(Attention, num_heads=2)])
    mixers = Pattern([inner, partial(Attention, num_heads=4)]).build([8] * 6)
    assert [mixer.num_heads for mixer in mixers] == [1, 4, 2, 4, 1, 4]


def test_an_empty_pattern_is_refused() -> None:
    with pytest.raises(ConfigError, match="empty"):
        Pattern([])
