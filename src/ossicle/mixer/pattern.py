"""Hybrids: a pattern of mixers that repeats over the layers."""

from collections.abc import Sequence
from typing import final

from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.mixer.base import Mixer, MixerFactory, MixerStack, build_mixers


@final
class Pattern(MixerStack):
    """Layer i takes the mixer at place i modulo the pattern's length.

    Mixers of one name and the same numbers know each other where their kind does, at whichever places they stand:
    stacks that are equal are built together, over all their layers in order.

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
        """One mixer a layer, from the first to the last.

        Args:
            dims: Width of each layer.

        Raises:
            ConfigError: The pattern names more mixers than there are layers.
        """
        if len(dims) < len(self.layers):
            raise ConfigError(
                f"mixer.layers names {len(self.layers)} mixers, and there are {len(dims)} layers",
                "name at most one a layer, or give the encoder more layers",
            )
        layers: dict[int, list[int]] = {}
        for layer in range(len(dims)):
            factory = self.layers[layer % len(self.layers)]
            first = next(place for place, other in enumerate(self.layers) if _alike(factory, other))
            layers.setdefault(first, []).append(layer)
        built: dict[int, Mixer] = {}
        for place, mine in layers.items():
            built.update(zip(mine, build_mixers(self.layers[place], [dims[i] for i in mine]), strict=True))
        return [built[layer] for layer in range(len(dims))]


def _alike(one: MixerFactory, other: MixerFactory) -> bool:
    """Whether two factories are one, or stacks of one class with equal numbers; layers that stand alone need not be."""
    stacks = isinstance(one, MixerStack) and type(one) is type(other)
    return one is other or (stacks and vars(one) == vars(other))
