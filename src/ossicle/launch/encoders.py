"""Encoders of finished runs, built again from their configs."""

from pathlib import Path
from typing import TYPE_CHECKING

from ossicle.core.errors import ConfigError
from ossicle.core.files import hash_file
from ossicle.launch import runs
from ossicle.launch.config import Config
from ossicle.launch.experiment import resolved

if TYPE_CHECKING:
    from ossicle.layer.speech_encoder import SpeechEncoder


def config_of(directory: Path) -> Config:
    """The config that a run directory carries.

    Raises:
        ConfigError: The directory has no config.
    """
    from omegaconf import DictConfig, OmegaConf

    for place in (directory, *directory.parents[:1]):  # a run of a chain lies one below the config
        if (place / runs.CONFIG_FILE).is_file():
            loaded = OmegaConf.load(place / runs.CONFIG_FILE)
            assert isinstance(loaded, DictConfig)
            return resolved(loaded)
    raise ConfigError(f"{directory} holds no {runs.CONFIG_FILE}", "name the directory of a run: runs/NAME/ID")


def untrained_encoder(config: Config) -> "SpeechEncoder":
    """The encoder of a config as it stood before its first step."""
    import torch

    from ossicle.core.seeds import derive_seed
    from ossicle.launch.experiment import instantiate_part

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(config["seed"], "init"))
        # In the order of system/build.py, so that the weights are those that the run began with.
        frontend = instantiate_part(config, "frontend")()
        encoder = instantiate_part(config, "encoder")(mixer=instantiate_part(config, "mixer"))
        model = instantiate_part(config, "model")(frontend=frontend, encoder=encoder)
    return model.eval()


def trained_encoder(directory: Path | str) -> "SpeechEncoder":
    """The encoder of a finished run with its trained weights."""
    from ossicle.system.weights import load_encoder

    directory = Path(directory)
    model = untrained_encoder(config_of(directory))
    load_encoder(model, directory / runs.ENCODER_FILE)
    return model


def fingerprint(directory: Path) -> str:
    """The hash of a finished run's weights: what labels made from it are traced to."""
    return hash_file(directory / runs.ENCODER_FILE)
