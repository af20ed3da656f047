"""Renaming of state-dict keys both ways, by one table of patterns, and loading that names every key that is wrong."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ossicle.core.errors import DataError

_PLACES = re.compile(r"\\\{(\w+)\\\}")
_NAMED = 8


@dataclass(frozen=True, slots=True)
class Renaming:
    """How a foreign format and this project name the same tensors.

    Args:
        name: The format, for messages.
        pairs: Foreign and own pattern of each key; ``{letter}`` stands for the same text in both, without dots.
        prefixes: What foreign keys may start with before the patterns apply, such as ``wav2vec2.``.
        left_out: Starts of foreign keys that belong to pretraining or fine-tuning heads, not to the encoder.
    """

    name: str
    pairs: Sequence[tuple[str, str]]
    prefixes: Sequence[str] = ()
    left_out: Sequence[str] = ()

    def imported(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The encoder's tensors under this project's names; heads are left out.

        Raises:
            DataError: If a key is neither the encoder's nor a known head's.
        """
        result: dict[str, Tensor] = {}
        unknown: list[str] = []
        for key, tensor in state.items():
            bare = self._bare(key)
            if any(bare.startswith(head) or key.startswith(head) for head in self.left_out):
                continue
            own = _rename(bare, self.pairs)
            if own is None:
                unknown.append(key)
            else:
                result[own] = tensor
        _refuse(f"{self.name} weights hold keys that no part of a Backbone has", unknown)
        return result

    def exported(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A Backbone's tensors under the foreign names, without a prefix.

        Raises:
            DataError: If the foreign format has no place for a key.
        """
        pairs = [(own, foreign) for foreign, own in self.pairs]
        names = {key: _rename(key, pairs) for key in state}
        _refuse(f"{self.name} has no place for these keys", [key for key, name in names.items() if name is None])
        return {name: state[key] for key, name in names.items() if name is not None}

    def _bare(self, key: str) -> str:
        for prefix in self.prefixes:
            if key.startswith(prefix):
                return key.removeprefix(prefix)
        return key


def load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a full state dict, and refuse one that lacks keys, has others, or differs in shape.

    Args:
        model: The module whose keys the state uses.
        state: Every tensor of the module by key.

    Raises:
        DataError: Naming the keys that are missing, unexpected or of another shape.
    """
    own = model.state_dict()
    _refuse("weights lack keys", [key for key in own if key not in state])
    _refuse("weights hold keys that the model has not", [key for key in state if key not in own])
    shapes = [f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}" for key in own]
    same = [state[key].shape == own[key].shape for key in own]
    _refuse("weights differ in shape", [text for text, fits in zip(shapes, same, strict=True) if not fits])
    model.load_state_dict(state)


def _rename(key: str, pairs: Sequence[tuple[str, str]]) -> str | None:
    for source, destination in pairs:
        found = re.fullmatch(_PLACES.sub(r"(?P<\1>[^.]+)", re.escape(source)), key)
        if found is not None:
            return destination.format(**found.groupdict())
    return None


def _refuse(problem: str, keys: Sequence[str]) -> None:
    if keys:
        named = ", ".join(keys[:_NAMED]) + (f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else "")
        raise DataError(
            f"{problem}: {named}", "build the model with the frontend, encoder and sizes that the weights come from"
        )
