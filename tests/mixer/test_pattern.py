from functools import partial

import pytest
import torch

from ossicle.core.errors import ConfigError
from ossicle.encoder.transformer import Transformer
from ossicle.mixer.alibi_attention import AlibiAttentionStack
from ossicle.mixer.attention import Attention
from ossicle.mixer.base import Lender, Mixer, MixerStack
from ossicle.mixer.disentangled_attention import DisentangledAttentionStack
from ossicle.mixer.pattern import Pattern
from ossicle.mixer.relative_attention import RelativeAttentionStack
from ossicle.mixer.reused_attention import ReusedAttentionStack


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


def own(mixers: list[Mixer], part: str) -> list[int]:
    """The layers that hold weights of a name themselves."""
    return [place for place, mixer in enumerate(mixers) if any(part in name for name, _ in mixer.named_parameters())]


@pytest.mark.parametrize(
    ("stack", "part"),
    [
        (RelativeAttentionStack, "distance_bias"),
        (DisentangledAttentionStack, "distance"),
        (AlibiAttentionStack, "scale"),
    ],
)
def test_equal_stacks_at_several_places_share_what_the_stack_shares(stack: type[MixerStack], part: str) -> None:
    joined = Pattern([stack(num_heads=2), stack(num_heads=2), partial(Attention, num_heads=2)]).build([8] * 6)
    alone = stack(num_heads=2).build([8] * 4)
    assert own(alone, part) == own(joined, part) == [0]
    counted = [sum(p.numel() for m in mixers for p in m.parameters()) for mixers in (joined[:2] + joined[3:5], alone)]
    assert counted[0] == counted[1]
    apart = Pattern([stack(num_heads=2), stack(num_heads=4)]).build([8] * 4)
    assert own(apart, part) == [0, 1]


def test_a_layer_reuses_the_map_of_its_neighbour_of_the_same_name() -> None:
    reused = [ReusedAttentionStack(2), ReusedAttentionStack(2)]
    mixers = Pattern([*reused, partial(Attention, num_heads=2)]).build([8] * 6)
    lenders = {place: mixer for place, mixer in enumerate(mixers) if isinstance(mixer, Lender)}
    assert list(lenders) == [0, 1, 3, 4]
    assert lenders[0].creditor is None
    assert lenders[1].creditor is lenders[0]
    assert lenders[3].creditor is None
    assert lenders[4].creditor is lenders[3]


def test_a_mixer_that_no_layer_would_take_is_refused() -> None:
    pattern = Pattern([partial(Attention, num_heads=2)] * 3)
    assert len(pattern.build([8] * 3)) == 3
    with pytest.raises(ConfigError, match="names 3 mixers, and there are 2 layers"):
        pattern.build([8] * 2)
