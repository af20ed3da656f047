"""Hybrids: a pattern of mixers that repeats over the layers."""

from collections.abc import Sequence
from typing import final

from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.mixer.base import Mixer, MixerFactory, MixerStack, build_mixers


@final
class Pattern(MixerStack):
    """Layer i takes the mixer at place i modulo the pattern's length.

    Mixers of one name know each other where their kind does: those of a stack are built together.

    Args:
        layers: Factories, one a place of the pattern; equal ones may be the same object.

    Raises:
        ConfigError: The pattern is empty.
    """

    def __init__(self, layers: Sequence[MixerFactory]) -> None:
        if not layers:
            raise ConfigError("mixer.layers is empty", "name at least one mixer: mixer.layers=[attention,summary]")
        self.layers = tuple(layers)

    @override
    def build(self, dims: Sequence[int]) -> list[Mixer]:
        built: list[Mixer | None] = [None] * len(dims)
        for place, factory in enumerate(self.layers):
            mine = range(place, len(dims), len(self.layers))
            for layer, mixer in zip(mine, build_mixers(factory, [dims[i] for i in mine]), strict=True):
                built[layer] = mixer
        return [mixer for mixer in built if mixer is not None]
