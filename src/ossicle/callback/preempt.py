"""Preemption: note the signal, finish the step, save on every rank, then let go."""

import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from ossicle.callback.checkpoints import Checkpoints
from ossicle.core.errors import ConfigError

log = logging.getLogger(__name__)

Handler = Callable[[int, FrameType | None], object] | int | None


class Drain(Callback):
    """Saves a checkpoint at the end of the step in which a signal came, then calls the handler that stood before.

    A handler of submitit requeues the job. Where none stood, or where it returns, the trainer stops. Saving inside a
    signal handler, as Lightning does, enters collectives in the middle of a step, from one rank alone.

    Ranks agree by a reduction whose result they read one step late, so that no host waits for its device.

    Args:
        run_dir: Where the run writes; not used.
        config: The resolved config; not used.
        signals: Names of the signals: SIGUSR2 is submitit's, SIGUSR1 Lightning's and many clusters', SIGTERM SLURM's.

    Attributes:
        drained_by: The signal for which the run was stopped, or None.
    """

    def __init__(
        self,
        *,
        run_dir: Path,
        config: Mapping[str, object],
        signals: Sequence[str] = ("SIGUSR1", "SIGUSR2", "SIGTERM"),
    ) -> None:
        del run_dir, config
        names = {member.name for member in signal.Signals}
        for name in signals:
            if name not in names:
                raise ConfigError(f"callback.preempt.signals: {name} is no signal", "name one such as SIGUSR1")
        self.signals = tuple(signal.Signals[name] for name in signals)
        self.drained_by: signal.Signals | None = None
        self._came: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Handler] = {}
        self._asked: tuple[Tensor, torch.cuda.Event | None] | None = None
        self._step = 0

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning puts its own SIGTERM handler in place between this hook and the next: what stood before is meant.
        self._handlers = {number: signal.getsignal(number) for number in self.signals}

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        self._came = self.drained_by = self._asked = None
        for number in self.signals:
            signal.signal(number, self._note)
        # Lightning asks rank 0 before every micro-batch whether SIGTERM came, and each host waits for the answer. This
        # callback asks instead.
        vars(trainer.fit_loop.epoch_loop)["_broadcast_sigterm_tensor"] = lambda: None

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._came = signal.Signals(number)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return  # in the middle of an optimiser step
        self._step = trainer.global_step
        number = self._agreed(trainer, pl_module.device)
        if number is None:
            return
        log.warning("%s: saving at step %d", number.name, trainer.global_step)
        for callback in vars(trainer)["callbacks"]:
            if isinstance(callback, Checkpoints):
                callback.save(trainer)
        self.drained_by = number
        handler = self._handlers[number]
        self._restore()
        trainer.should_stop = True
        if callable(handler):
            handler(number, None)

    def _agreed(self, trainer: Trainer, device: torch.device) -> signal.Signals | None:
        """The signal that came to any rank; with several ranks, by the step before this one."""
        if trainer.world_size == 1:
            return self._came
        flag = torch.full((), 0 if self._came is None else int(self._came), dtype=torch.int32, device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        asked = self._asked
        if device.type == "cuda":
            host = torch.empty((), dtype=torch.int32, pin_memory=True).copy_(flag, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._asked = (host, event)
        else:
            self._asked = (flag, None)
        if asked is None:
            return None
        answer, ready = asked
        if ready is not None:
            ready.synchronize()  # the end of a step that all but certainly lies behind
        return signal.Signals(int(answer)) if int(answer) else None

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            if handler is not None:
                signal.signal(number, handler)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore()
        self._handlers = {}
