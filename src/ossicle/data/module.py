"""Training data for Lightning: shards on disk to an endless loader that knows where it stands."""

from pathlib import Path

from lightning import LightningDataModule
from typing_extensions import override

from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError
from ossicle.core.files import hash_json
from ossicle.core.world import World
from ossicle.data.buckets import Shapes, choose_shapes
from ossicle.data.index import DatasetIndex
from ossicle.data.labels import LabelSet
from ossicle.data.loader import PlannedLoader, planned_loader
from ossicle.data.plan import Plan
from ossicle.data.quarantine import Quarantine
from ossicle.data.reader import BatchReader


class ShardData(LightningDataModule):
    """One split of a prepared dataset as planned batches, resumable at any batch on any number of ranks.

    The position is counted by the system, which calls :meth:`advance` for each batch that it has trained on: what a
    loader or a fetcher has read ahead does not count.

    Args:
        shards: Directory of a prepared dataset.
        split: Split to train on.
        labels: Directory of labels, or None where the target needs none.
        max_crop_s: Longest crop, in seconds.
        min_crop_s: Utterances shorter than this are left out, in seconds.
        num_shapes: Most static shapes that batches come in.
        batch_s: Audio in one batch of one rank, in seconds.
        window_shards: Shards whose samples are shuffled together.
        workers: Processes of each rank that read.
        seed: Seeds the order and the crops.
        max_bad_fraction: Share of unreadable utterances above which training stops.
        quarantine: File that names what could not be read, or None.

    Attributes:
        position: Global batches consumed.
    """

    def __init__(
        self,
        shards: str | Path,
        *,
        max_crop_s: float,
        min_crop_s: float,
        num_shapes: int,
        batch_s: float,
        window_shards: int,
        workers: int,
        seed: int,
        max_bad_fraction: float,
        split: str = "train",
        labels: str | Path | None = None,
        quarantine: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.index = DatasetIndex.load(Path(shards), split)
        self.labels = None if labels is None else LabelSet.load(labels)
        samples_N = self.index.rows["samples"]
        self.shapes: Shapes = choose_shapes(
            samples_N,
            max_crop_s=max_crop_s,
            min_crop_s=min_crop_s,
            num_shapes=num_shapes,
            batch_s=batch_s,
            rate_hz=self.index.rate_hz,
        )
        self.unused_fraction = self.shapes.unused_fraction(samples_N, int(max_crop_s * self.index.rate_hz))
        self.num_excluded = self.shapes.num_excluded(samples_N)
        self.plan = Plan(self.index.rows, self.shapes, seed=seed, window_shards=window_shards)
        self.seed = seed
        self.workers = workers
        self.quarantine = Quarantine(None if quarantine is None else Path(quarantine), max_bad_fraction)
        self.position = 0
        self._clock: FrameClock | None = None

    @property
    def fingerprint(self) -> str:
        """Hash of all that the sequence of batches depends on: data, shapes, seed."""
        return hash_json({"data": self.index.content_hash, "plan": self.plan.fingerprint})

    def set_clock(self, clock: FrameClock, num_classes: int | None = None) -> None:
        """Take the model's clock, and check the labels against it.

        Args:
            clock: The model's clock.
            num_classes: Classes that the objective predicts, where it predicts labels.

        Raises:
            ConfigError: Another rate, clock or number of classes than the data's and the labels'.
            DataError: The labels are of other data.
        """
        if clock.rate_hz != self.index.rate_hz:
            raise ConfigError(
                f"the model hears {clock.rate_hz} Hz and {self.index.path} holds {self.index.rate_hz} Hz",
                "prepare the data at the model's rate",
            )
        if clock.num_frames(self.shapes.lengths[0]) == 0:
            raise ConfigError(
                f"the shortest crop, {self.shapes.lengths[0]} samples, gives the model no frame",
                f"raise data.min_crop_s to at least {clock.num_samples(1) / clock.rate_hz}",
            )
        if self.labels is not None:
            self.labels.check(self.index, clock, num_classes)
        self._clock = clock

    def epoch(self) -> float:
        """Epochs consumed so far, as a fraction."""
        return self.position / sum(n / rows for n, rows in zip(self.plan.sizes, self.shapes.rows, strict=True))

    def advance(self, batches_per_rank: int = 1) -> None:
        """Count batches that every rank has consumed."""
        self.position += batches_per_rank * World.current().size

    @override
    def train_dataloader(self) -> PlannedLoader:
        """An endless loader from the current position on.

        Raises:
            ConfigError: The model's clock has not been set.
        """
        if self._clock is None:
            raise ConfigError("the data do not know the model's clock", "call set_clock before fit")
        reader = BatchReader(
            self.index,
            self.shapes,
            seed=self.seed,
            model_clock=self._clock,
            quarantine=self.quarantine,
            labels=self.labels,
        )
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return planned_loader(
            self.plan,
            reader,
            start_position=self.position,
            world=World.current(),
            workers=self.workers,
            pin_memory=on_gpu,
        )

    @override
    def state_dict(self) -> dict[str, int | str]:
        return {"position": self.position, "fingerprint": self.fingerprint}

    @override
    def load_state_dict(self, state_dict: dict[str, int | str]) -> None:
        """Go to a saved position, on any number of ranks.

        Raises:
            ConfigError: The position is of another sequence of batches.
        """
        if state_dict["fingerprint"] != self.fingerprint:
            raise ConfigError(
                "the checkpoint's data position is of other data, crops, batch_s, window_shards or seed",
                "resume with the settings of the run that wrote it, or start a new run from its weights",
            )
        self.position = int(state_dict["position"])
