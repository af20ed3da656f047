"""Weights of an encoder alone: written as safetensors, read from there or from a checkpoint."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from ossicle.core.errors import DataError
from ossicle.core.files import atomic_write

PREFIX = "model."


def encoder_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's weights in a system's state, under the model's own keys."""
    return {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}


def write_weights(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, object]) -> None:
    """Write weights as safetensors, whole or not at all.

    Args:
        path: The file.
        weights: Tensors by key.
        metadata: Stored beside them, each value as JSON.
    """
    whole = {key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}
    text = {key: json.dumps(value) for key, value in metadata.items()}
    with atomic_write(path) as file:
        file.write(safetensors.torch.save(whole, text))


def read_metadata(path: Path) -> dict[str, object]:
    """The metadata that :func:`write_weights` stored."""
    with safe_open(str(path), framework="pt") as file:
        return {key: json.loads(value) for key, value in (file.metadata() or {}).items()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights of an encoder, from an exported file or from a checkpoint.

    Raises:
        DataError: The file does not exist or is damaged.
    """
    if not path.is_file():
        raise DataError(f"there are no weights at {path}", "name a run's encoder.safetensors or a checkpoint")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return encoder_weights(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise DataError(f"{path} holds no readable weights: {error}", "export the run's encoder again") from error


def load_encoder(model: nn.Module, path: Path) -> None:
    """Load an encoder's weights into a model, every one of them.

    Raises:
        DataError: The file is missing or damaged, or holds another architecture.
    """
    try:
        model.load_state_dict(read_weights(path), strict=True)
    except RuntimeError as error:
        raise DataError(
            f"the weights in {path} do not fit this model: {error}",
            "use the frontend, encoder and mixer they come from",
        ) from error
