"""The system that pretrains: a thin LightningModule around a model and an objective."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from typing_extensions import override

from ossicle.augmentation.base import Augmentation
from ossicle.augmentation.identity import Identity
from ossicle.core.batch import Batch
from ossicle.core.metrics import Mean, Metric, flatten, unflatten
from ossicle.core.seeds import derive_seed, seed_default_generators
from ossicle.layer.batch_norm import FrameBatchNorm
from ossicle.layer.speech_encoder import SpeechEncoder
from ossicle.meter.throughput import Throughput
from ossicle.objective.base import Objective
from ossicle.optim.schedules import Schedule
from ossicle.system.execution import Execution
from ossicle.system.watcher import Watcher
from ossicle.target.base import DiscreteTarget

if TYPE_CHECKING:
    from lightning.pytorch.core.optimizer import LightningOptimizer

    from ossicle.system.build import PlannedData


class Pretraining(LightningModule):
    """Trains a model on an objective: the gradient is that of loss sum over count, whatever the world looks like.

    Each micro-batch gives a sum and a count. Gradients are summed over micro-batches and ranks and divided once, before
    clipping, by the count summed over both: so accumulation, world size and the shapes of batches leave the loss
    unchanged. Nothing is read from the device in a step; metrics are summed there and read every ``log_every`` steps.

    Args:
        model: The model that is trained.
        objective: What it is trained on.
        optim: Makes the optimiser over this system's parameters.
        schedule: Multiplier of the learning rate by optimiser step.
        seed: The run's seed.
        clip_norm: Largest norm of the gradient, or None.
        log_every: Optimiser steps between readings of the metrics.
        augmentation: What is done to a batch before the objective sees it; None for nothing.
        execution: How its blocks are run.

    Attributes:
        last_loss: The loss at the last reading of the metrics, or None before the first.
        throughput: This rank's counts of audio and waiting.
    """

    def __init__(
        self,
        model: SpeechEncoder,
        objective: Objective,
        *,
        optim: Callable[[nn.Module], torch.optim.Optimizer],
        schedule: Schedule,
        seed: int,
        clip_norm: float | None = None,
        log_every: int = 100,
        augmentation: Augmentation | None = None,
        execution: Execution | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.optim = optim
        self.schedule = schedule
        self.seed = seed
        self.clip_norm = clip_norm
        self.log_every = log_every
        self.augmentation = Identity(model.clock) if augmentation is None else augmentation
        self.throughput = Throughput()
        self.past_audio_s = 0.0
        self.last_loss: float | None = None
        self._base_rates: list[float] = []
        self._count: Tensor | None = None
        self._window: dict[str, Metric] = {}
        self._moments: list[Tensor] = []
        self.execution = Execution() if execution is None else execution
        teachers = [part for part in objective.modules() if isinstance(part, SpeechEncoder)]
        self.execution.prepare(model, teachers)

    @property
    def data(self) -> "PlannedData":
        """The data module of the run."""
        return cast("PlannedData", vars(self.loop)["datamodule"])

    @property
    def loop(self) -> Trainer:
        """The trainer that this system is attached to."""
        return self.trainer

    @override
    def setup(self, stage: str) -> None:
        target = getattr(self.objective, "target", None)
        self.data.set_clock(self.model.clock, target.num_classes if isinstance(target, DiscreteTarget) else None)

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = self.optim(self)
        # The rates of the config, not those that a checkpoint brings with the optimiser's state, are what is scheduled.
        self._base_rates = [float(group["lr"]) for group in optimizer.param_groups]
        return optimizer

    @override
    def on_train_start(self) -> None:
        self.augmentation.load(self.device)
        self._moments = [
            moment
            for module in self.modules()
            if isinstance(module, FrameBatchNorm | nn.BatchNorm1d) and module.running_mean is not None
            for moment in (module.running_mean, cast("Tensor", module.running_var))
        ]
        self.throughput.start()

    @override
    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.throughput.arrive()

    @override
    def on_train_batch_end(self, outputs: object, batch: Batch, batch_idx: int) -> None:
        self.throughput.wait()

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # Dropout and layerdrop draw from the default generators; what they draw depends on the batch alone.
        seed_default_generators(derive_seed(self.seed, "dropout", batch.position), self.device)
        self.execution.begin_step()
        self.model.anneal(self.global_step)
        batch = self.augmentation(batch, seed=self.seed)
        output = self.objective(self.model, batch, seed=self.seed, step=self.global_step)
        count = output.count.detach().float()
        self._count = count.clone() if self._count is None else self._count + count
        self._add({"objective/loss": Mean(output.loss_sum.detach(), count), **output.logs})
        self.throughput.count(*batch.waveform_BS.shape, rate_hz=self.model.clock.rate_hz)
        # Before any callback sees the end of this batch: a checkpoint of this step must not read the batch again.
        self.data.advance()
        if self.loop.world_size == 1:
            return output.loss_sum
        return Touch.apply(output.loss_sum, *(p for p in self.parameters() if p.requires_grad))

    @override
    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: "torch.optim.Optimizer | LightningOptimizer",
        optimizer_closure: Callable[[], object] | None = None,
    ) -> None:
        step = self.global_step
        for group, rate in zip(optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * self.schedule(step)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        with torch.no_grad():
            self._share_moments()
            self.objective.after_step(self.model, seed=self.seed, step=step + 1)
        if (step + 1) % self.log_every == 0 or step + 1 == self.loop.max_steps:
            self._publish(step + 1, float(optimizer.param_groups[0]["lr"]))

    def _share_moments(self) -> None:
        """Give all ranks the mean of the running moments of batch norms, so that each exports what all have heard."""
        if self.loop.world_size == 1 or not self._moments:
            return
        means = torch.cat([moment.flatten() for moment in self._moments])
        dist.all_reduce(means)
        means /= self.loop.world_size
        for moment, mean in zip(self._moments, means.split([m.numel() for m in self._moments]), strict=True):
            moment.copy_(mean.view_as(moment))

    @override
    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Turn the gradient of sums into that of their mean, then clip it. Lightning calls this before each step."""
        assert self._count is not None
        trainer = self.loop
        count = self._count
        self._count = None
        if trainer.world_size > 1:
            dist.all_reduce(count)
        # Lightning has divided by the micro-batches of a step, DDP by the ranks: undone here.
        scale = trainer.world_size * trainer.accumulate_grad_batches / count.clamp(min=1.0)
        still = {id(parameter) for parameter in self.model.still()}
        for parameter in self.model.still():
            parameter.grad = None  # zeros would still be moved by decay and momentum
        parameters = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in still]
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient  # a block that layerdrop left out has zeros, as it has where ranks differ
        norm = nn.utils.get_total_norm(gradients) * scale
        if self.clip_norm is not None:  # one pass for both: clip_grads_with_norm_'s factor times the mean's
            scale = scale * (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, scale)
        self._add({"optim/grad_norm": Mean(norm, torch.ones_like(norm))})

    def _add(self, metrics: dict[str, Metric]) -> None:
        """Add metrics to those since the last reading, on their device."""
        for name, metric in metrics.items():
            plain = metric.with_tensors(metric.tensors())  # detached: sums must not hold the graph of a step
            self._window[name] = self._window[name] + plain if name in self._window else plain

    def _publish(self, step: int, rate: float) -> None:
        """Reduce the metrics since the last reading over ranks, read them once, and pass them on."""
        trainer = self.loop
        window, self._window = self._window, {}
        passage = self.throughput.take()
        metrics = flatten(window)
        host = torch.tensor(
            [passage.audio_s, passage.wait_s, passage.wall_s, self.throughput.audio_s], dtype=torch.float64
        )
        sums = torch.cat([metrics, host.to(metrics.device)])
        if trainer.world_size > 1:
            dist.all_reduce(sums)
        sums = sums.cpu()
        audio_s, wait_s, rank_s, session_audio_s = sums[-4:].tolist()
        values: dict[str, float] = {}
        for name, metric in unflatten(window, sums[:-4]).items():
            values |= metric.read(name)
        values |= {
            "optim/lr": rate,
            "data/position": float(self.data.position),
            "data/wait_fraction": wait_s / rank_s,
            "meter/audio_s_per_s": audio_s * trainer.world_size / rank_s,
            "meter/audio_hours": (self.past_audio_s + session_audio_s) / 3600,
        }
        self.last_loss = values.get("objective/loss")
        watchers = [callback for callback in vars(trainer)["callbacks"] if isinstance(callback, Watcher)]
        for watcher in watchers:
            values |= watcher.measure(trainer, self)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)
        for watcher in watchers:
            watcher.on_metrics(trainer, self, values, step)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        checkpoint["position"] = self.data.position
        session = torch.tensor(self.throughput.audio_s, dtype=torch.float64, device=self.device)
        if self.loop.world_size > 1:  # Lightning assembles a checkpoint on every rank
            dist.all_reduce(session)
        checkpoint["audio_s"] = self.past_audio_s + session.item()

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, object]) -> None:
        self.past_audio_s = float(cast("float", checkpoint["audio_s"]))
        begin_at_a_step(checkpoint, self.loop.accumulate_grad_batches)


class Touch(torch.autograd.Function):
    """The loss unchanged, made to depend on every parameter at no cost.

    DDP waits for all parameters, but blocks that layerdrop skips have no part in a rank's loss. Searching for them
    (find_unused_parameters) walks the graph in every step and makes hosts wait for each other.
    """

    @staticmethod
    @override
    def forward(ctx: FunctionCtx, loss: Tensor, *parameters: Tensor) -> Tensor:
        """The loss itself."""
        return loss.view_as(loss)

    @staticmethod
    @override
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The loss's gradient, and for the parameters none: their hooks run all the same."""
        return (grads[0], *(None for _ in ctx.needs_input_grad[1:]))  # ty: ignore[missing-attribute]


def begin_at_a_step(checkpoint: Mapping[str, object], accumulate: int) -> None:
    """Let a resumed run begin with a whole step, also where ranks, and so micro-batches a step, are others than before.

    Checkpoints are made between steps. But Lightning steps when the micro-batches that it has counted divide by
    ``accumulate``, so a count of 6 that were three steps of two would make the next one of four a half.

    Args:
        checkpoint: The loaded checkpoint, whose counts are changed.
        accumulate: Micro-batches of a step and rank from now on.
    """
    loops = cast("dict[str, dict[str, dict[str, dict[str, int]]]]", checkpoint["loops"])
    counts = loops["fit_loop"]["epoch_loop.batch_progress"]["current"]
    shift = cast("int", checkpoint["global_step"]) * accumulate - counts["ready"]
    counts |= {name: count + shift for name, count in counts.items()}
