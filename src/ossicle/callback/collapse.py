"""Guards against runs that have stopped learning anything: constant codes, constant outputs, guesses, no number."""

import logging
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from lightning import LightningModule, Trainer
from typing_extensions import override

from ossicle.core.errors import CollapseError
from ossicle.system.watcher import Watcher
from ossicle.target.base import Teacher

log = logging.getLogger(__name__)

FINITE = "the loss is not a finite number"
LAYER = re.compile(r"/layer_(\d+)(?=/)")
"""The part of a metric's name that says which layer below the output it is of."""


class CollapseGuard(Watcher):
    """Watches for collapse, warns at the first sign, and stops the run when the signs persist.

    A threshold of None switches its sign off, and a sign whose metric an objective does not log is not looked for. What
    holds for the output holds for a layer below it whose metrics are logged, each layer with a sign of its own. A
    loss that is NaN or infinite stops the run at the first reading, since no later step can mend the weights.

    Args:
        run_dir: Where the run writes; not used.
        config: The resolved config; not used.
        action: ``stop`` raises when the signs persist, ``warn`` only says so.
        patience: Consecutive readings with a sign after which the run is stopped.
        start_step: Optimiser steps before which a model may look collapsed: all begin so.
        min_target_perplexity: Least perplexity of the target's codes, on average over codebooks and in each.
        min_output_perplexity: Least perplexity of the predicted classes, on average over heads and of each.
        min_output_std: Least standard deviation of the encoder's output over frames, averaged over channels.
        min_target_std: Least standard deviation of a teacher's targets over frames; normalised ones have about 1.
        min_prediction_std: Least standard deviation of what is predicted of them.
        min_teacher_gap: Least distance of a moving average's weights from the student's, relative to their length: at 0
            the student learns from itself.
        max_teacher_gap: Largest such distance: a teacher that was left behind.
        min_frame_std: Least standard deviation over time of frames that are foreseen, averaged over channels.
        min_over_chance: Least ratio of accuracy to chance: that of always guessing the target's most frequent class, or
            of choosing among the positive and its negatives blindly.
    """

    def __init__(
        self,
        *,
        run_dir: Path,
        config: Mapping[str, object],
        action: Literal["warn", "stop"] = "stop",
        patience: int = 5,
        start_step: int = 1000,
        min_target_perplexity: float | None = 2.0,
        min_output_perplexity: float | None = 1.5,
        min_output_std: float | None = 1e-3,
        min_target_std: float | None = 0.1,
        min_prediction_std: float | None = 0.01,
        min_teacher_gap: float | None = 1e-7,
        max_teacher_gap: float | None = 1.4,
        min_frame_std: float | None = 1e-3,
        min_over_chance: float | None = 1.02,
    ) -> None:
        del run_dir, config
        self.action = action
        self.patience = patience
        self.start_step = start_step
        self.min_over_chance = min_over_chance
        self.floors = {
            "target/codes_perplexity": (min_target_perplexity, "the target uses hardly any codes"),
            "target/codes_least_perplexity": (min_target_perplexity, "a codebook of the target uses hardly any codes"),
            "objective/codes_perplexity": (min_output_perplexity, "the model predicts hardly any classes"),
            "objective/codes_least_perplexity": (min_output_perplexity, "a head predicts hardly any classes"),
            "objective/output_std": (min_output_std, "the encoder's output is nearly constant"),
            "target/std": (min_target_std, "the teacher's targets are nearly constant"),
            "objective/prediction_std": (min_prediction_std, "the predictions are nearly constant"),
            "target/teacher_gap": (min_teacher_gap, "the teacher is the student itself"),
            "target/frame_std": (min_frame_std, "the frames that are foreseen are nearly constant"),
        }
        self.max_teacher_gap = max_teacher_gap
        self._streaks: dict[str, int] = {}

    @override
    def measure(self, trainer: Trainer, system: LightningModule) -> Mapping[str, float]:
        """The distance of teacher and student, where the objective has a teacher that follows."""
        target = getattr(getattr(system, "objective", None), "target", None)
        gap = target.gap(system.model) if isinstance(target, Teacher) else None
        return {} if gap is None else {"target/teacher_gap": float(gap)}

    @override
    def on_metrics(self, trainer: Trainer, system: LightningModule, metrics: Mapping[str, float], step: int) -> None:
        signs = dict(self.signs(metrics, step))
        self._streaks = {sign: self._streaks.get(sign, 0) + 1 for sign in signs}
        for sign, reading in signs.items():
            streak = self._streaks[sign]
            due = sign == FINITE or streak >= self.patience
            problem = f"step {step}: {sign} ({reading}), {streak} reading(s) in a row"
            if due and self.action == "stop":
                raise CollapseError(problem, self.mend(sign))
            if trainer.is_global_zero and streak in {1, self.patience}:
                log.warning("%s; %s", problem, self.mend(sign))

    def signs(self, metrics: Mapping[str, float], step: int) -> Iterator[tuple[str, str]]:
        """Signs of collapse in one reading, each with what was read."""
        loss = metrics.get("objective/loss", 0.0)
        if not math.isfinite(loss):
            yield FINITE, f"objective/loss {loss}"
        if step < self.start_step:
            return
        plain = {name: LAYER.sub("", name) for name in metrics}
        for watched, (floor, sign) in self.floors.items():
            for name, reading in metrics.items():
                if plain[name] == watched and floor is not None and not reading >= floor:
                    yield sign + place(name), f"{name} {reading:.4g} < {floor:g}"
        gap = metrics.get("target/teacher_gap", 0.0)
        if self.max_teacher_gap is not None and not gap <= self.max_teacher_gap:
            yield "the student has left its teacher behind", f"target/teacher_gap {gap:.4g} > {self.max_teacher_gap:g}"
        if self.min_over_chance is None:
            return
        for accuracy, by_chance, sign in guesses(metrics):
            right, chance = metrics[accuracy], metrics[by_chance]
            if not right >= chance * self.min_over_chance:
                yield sign + place(accuracy), f"{accuracy} {right:.4g}, by chance {chance:.4g}"

    def mend(self, sign: str) -> str:
        """What to do about a sign."""
        if sign == FINITE:
            return "lower optim.lr, set clip_norm, or warm up for longer; the last checkpoint was written before"
        return "lower optim.lr or warm up for longer; if all is well, change callback.collapse or give it start_step"


def place(name: str) -> str:
    """What a sign adds for a metric of a layer below the output."""
    found = LAYER.search(name)
    return f" at layer {found[1]}" if found else ""


def guesses(metrics: Mapping[str, float]) -> Iterator[tuple[str, str, str]]:
    """Names of the accuracies of one reading, each with the name of what blind guesses would reach, and with its sign.

    Args:
        metrics: What was read. Where an objective tells one frame from negatives and predicts classes besides, both
            accuracies are there.
    """
    found = [
        ("objective/accuracy_contrastive", "objective/chance", "the model guesses among negatives"),
        ("objective/accuracy_foreseen", "objective/chance", "the model guesses what follows"),
    ]
    if "objective/codes_perplexity" in metrics:  # classes are predicted
        found.append(("objective/accuracy_masked", "target/codes_top", "the model guesses classes"))
    found += [
        (name, name.replace("accuracy_masked", "wanted_top"), "the model guesses classes")
        for name in metrics
        if LAYER.search(name) and name.endswith("/accuracy_masked")
    ]
    for accuracy, by_chance, sign in found:
        if accuracy in metrics and by_chance in metrics:
            yield accuracy, by_chance, sign
