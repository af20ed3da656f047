"""What a probe asks of features: a task turns utterances into classes, trains heads and counts errors."""

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from ossicle.core.seeds import numpy_generator
from ossicle.data.utterance import Utterance
from ossicle.probe.collect import FeatureSet, phone_of_frames
from ossicle.probe.linear import (
    HeadTraining,
    LinearHead,
    MixedHead,
    Whitening,
    mix,
    normalise,
    train_head,
    train_mixed_head,
)
from ossicle.probe.report import WEIGHTED, Outcome, TaskNote

SILENCE = "_"
_KEPT = 0.9
_NO_CLASS = -1

T = TypeVar("T")
H = TypeVar("H", LinearHead, MixedHead)


@dataclass(frozen=True, slots=True)
class Splits(Generic[T]):
    """Something for each split; dev where there is one."""

    train: T
    test: T
    dev: T | None = None


class ProbeTask(ABC):
    """One question asked of every feature alike.

    Attributes:
        name: How records call it.
        needs_frames: Whether it looks at frames, or at one vector an utterance.
    """

    name: str
    needs_frames: bool

    @abstractmethod
    def note(self, utterances: Splits[tuple[Utterance, ...]]) -> TaskNote:
        """Classes, chance and what is left out; fewer than two classes mean that the task cannot run here."""

    @abstractmethod
    def run(self, sets: Splits[FeatureSet], layers: tuple[str, ...], seeds: Sequence[int]) -> Iterator[Outcome]:
        """Train and test a head for every layer, their weighted sum where there are several, and every seed."""


def hashed(name: str) -> int:
    """A stable number of an utterance's id: halves and folds are drawn by it, whatever the order of the data."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def drawn_utterances(num_utterances: int, seed: int, task: str) -> NDArray[np.bool_]:
    """The nine tenths of the training utterances that a seed trains on."""
    keep_U = np.zeros(num_utterances, dtype=bool)
    kept = max(1, round(_KEPT * num_utterances))
    keep_U[numpy_generator(seed, "probe", task).permutation(num_utterances)[:kept]] = True
    return keep_U


def left_out_tenth(utterances: Sequence[Utterance]) -> NDArray[np.bool_]:
    """A tenth of the training utterances, by hash, to choose on where there is no dev split."""
    order = np.argsort(np.array([hashed(utterance.id) for utterance in utterances], dtype=np.uint64))
    left_out_U = np.zeros(len(utterances), dtype=bool)
    left_out_U[order[: max(1, len(utterances) // 10)]] = True
    return left_out_U


def errors_by_owner(wrong_P: NDArray[np.bool_], owner_P: NDArray[np.int64], num_owners: int) -> NDArray[np.float64]:
    """Sum of flags over each utterance, shape (U,)."""
    return np.bincount(owner_P[wrong_P], minlength=num_owners).astype(np.float64)


@dataclass(frozen=True)
class _Frames:
    """Labelled frames of one feature: rows with a class, of the training, the selection and the test."""

    train_y_P: Tensor
    train_rows: Tensor
    select: FeatureSet
    select_y_P: Tensor
    select_rows: Tensor
    test_y_P: Tensor
    test_rows: Tensor
    silence: int | None


@final
class FramePhones(ProbeTask):
    """Which phone is spoken at a frame's centre, silence included; trained on ``train``, tested on ``test``.

    The heads see test voices and sentences for the first time. Frames of phones that training lacks are not counted.

    Args:
        training: The budget of each head.
    """

    name = "phone"
    needs_frames = True

    def __init__(self, training: HeadTraining | None = None) -> None:
        self.training = training or HeadTraining()

    @override
    def note(self, utterances: Splits[tuple[Utterance, ...]]) -> TaskNote:
        classes = _phones(utterances.train)
        timed = [phone for utterance in utterances.test for phone in utterance.phones]
        if len(classes) < 2 or not timed:
            return TaskNote(self.name, len(classes), remarks=("not run: no timed phones in train and test",))
        common = _most_frequent(utterances.train)
        duration = sum(phone.end - phone.start for phone in timed if phone.symbol in classes)
        hit = sum(phone.end - phone.start for phone in timed if phone.symbol == common)
        return TaskNote(
            task=self.name,
            num_classes=len(classes),
            chance_error=1 - hit / max(1, duration),
            selected_on="dev" if utterances.dev else "a tenth of the training utterances, left out",
            excluded=tuple(sorted({phone.symbol for phone in timed} - set(classes))),
        )

    @override
    def run(self, sets: Splits[FeatureSet], layers: tuple[str, ...], seeds: Sequence[int]) -> Iterator[Outcome]:
        classes = _phones(sets.train.utterances)
        frames = _label(sets, classes)
        for place, layer in enumerate(layers):
            x_PD = sets.train.frames[place]
            whitening = self._whitening(x_PD, frames, len(classes))
            z_PD = whitening.apply(x_PD)
            for seed in seeds:
                began = time.perf_counter()
                rows = self._rows(sets.train, frames, seed)
                heads = train_head(
                    z_PD[rows],
                    frames.train_y_P[rows],
                    len(classes),
                    whitening=whitening,
                    training=self.training,
                    seed=seed,
                )
                head, error = _least_error(heads, frames.select.frames[place], frames)
                predicted_P = head.predict(sets.test.frames[place])
                yield _outcome(
                    predicted_P,
                    sets.test,
                    frames,
                    layer=layer,
                    seed=seed,
                    selection_error=error,
                    num_train=len(rows),
                    began=began,
                )
        if len(layers) > 1:
            yield from self._run_mixed(sets, frames, classes, seeds)

    def _run_mixed(
        self, sets: Splits[FeatureSet], frames: _Frames, classes: tuple[str, ...], seeds: Sequence[int]
    ) -> Iterator[Outcome]:
        x_LPD = normalise(sets.train.frames)
        equal_L = torch.full((len(x_LPD),), 1 / len(x_LPD), device=x_LPD.device)
        whitening = self._whitening(mix(x_LPD, equal_L), frames, len(classes))
        for seed in seeds:
            began = time.perf_counter()
            rows = self._rows(sets.train, frames, seed)
            heads = train_mixed_head(
                x_LPD, frames.train_y_P, rows, len(classes), whitening=whitening, training=self.training, seed=seed
            )
            head, error = _least_error(heads, frames.select.frames, frames)
            predicted_P = head.predict(sets.test.frames)
            weights = tuple(head.layer_weights_L.tolist())
            yield _outcome(
                predicted_P,
                sets.test,
                frames,
                layer=WEIGHTED,
                seed=seed,
                selection_error=error,
                num_train=len(rows),
                began=began,
                layer_weights=weights,
            )

    def _whitening(self, x_PD: Tensor, frames: _Frames, num_classes: int) -> Whitening:
        rows = frames.train_rows
        return Whitening.fit(x_PD[rows], frames.train_y_P[rows], num_classes, self.training.shrinkage)

    def _rows(self, train: FeatureSet, frames: _Frames, seed: int) -> Tensor:
        drawn_U = drawn_utterances(len(train.utterances), seed, self.name)
        drawn_P = torch.from_numpy(drawn_U[train.owners]).to(frames.train_rows.device)
        return frames.train_rows[drawn_P[frames.train_rows]]


def _phones(utterances: Sequence[Utterance]) -> tuple[str, ...]:
    return tuple(sorted({phone.symbol for utterance in utterances for phone in utterance.phones}))


def _most_frequent(utterances: Sequence[Utterance]) -> str:
    total: dict[str, int] = {}
    for utterance in utterances:
        for phone in utterance.phones:
            total[phone.symbol] = total.get(phone.symbol, 0) + phone.end - phone.start
    return max(total, key=total.__getitem__)


def _silence(classes: tuple[str, ...]) -> int | None:
    return classes.index(SILENCE) if SILENCE in classes else None


def _classes_of_frames(found: FeatureSet, classes: tuple[str, ...]) -> Tensor:
    number: dict[str | None, int] = {symbol: place for place, symbol in enumerate(classes)}
    counts = np.diff(found.offsets).tolist()
    labels = [
        number.get(symbol, _NO_CLASS)
        for utterance, count in zip(found.utterances, counts, strict=True)
        for symbol in phone_of_frames(utterance, found.clock, count)
    ]
    return torch.tensor(labels, dtype=torch.int64, device=found.frames.device)


def _label(sets: Splits[FeatureSet], classes: tuple[str, ...]) -> _Frames:
    train_y_P = _classes_of_frames(sets.train, classes)
    test_y_P = _classes_of_frames(sets.test, classes)
    if sets.dev is not None:
        select, select_y_P = sets.dev, _classes_of_frames(sets.dev, classes)
        train_rows, select_rows = _known(train_y_P), _known(select_y_P)
    else:
        select, select_y_P = sets.train, train_y_P
        left_out_P = torch.from_numpy(left_out_tenth(sets.train.utterances)[sets.train.owners]).to(train_y_P.device)
        known = _known(train_y_P)
        train_rows, select_rows = known[~left_out_P[known]], known[left_out_P[known]]
    return _Frames(
        train_y_P, train_rows, select, select_y_P, select_rows, test_y_P, _known(test_y_P), _silence(classes)
    )


def _known(y_P: Tensor) -> Tensor:
    return (y_P >= 0).nonzero()[:, 0]


def _least_error(heads: Iterator[H], x: Tensor, frames: _Frames) -> tuple[H, float]:
    """The head with the least selection error and that error; of equal ones the first."""
    x = x.index_select(-2, frames.select_rows)
    y = frames.select_y_P[frames.select_rows]
    scored = [(float((head.predict(x) != y).float().mean()), head) for head in heads]
    error, head = min(scored, key=lambda pair: pair[0])
    return head, error


def _outcome(
    predicted_P: Tensor,
    test: FeatureSet,
    frames: _Frames,
    *,
    layer: str,
    seed: int,
    selection_error: float,
    num_train: int,
    began: float,
    layer_weights: tuple[float, ...] | None = None,
) -> Outcome:
    rows = frames.test_rows
    truth = frames.test_y_P[rows].cpu().numpy()
    wrong = predicted_P[rows].cpu().numpy() != truth
    owner = test.owners[rows.cpu().numpy()]
    spoken = truth != (_NO_CLASS if frames.silence is None else frames.silence)
    count = len(test.utterances)
    return Outcome(
        layer=layer,
        seed=seed,
        errors_U=errors_by_owner(wrong, owner, count),
        counts_U=np.bincount(owner, minlength=count).astype(np.float64),
        selection_error=selection_error,
        num_train=num_train,
        seconds=time.perf_counter() - began,
        speech_errors_U=errors_by_owner(wrong & spoken, owner, count),
        speech_counts_U=errors_by_owner(spoken, owner, count),
        layer_weights=layer_weights,
    )
