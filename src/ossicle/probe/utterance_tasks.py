"""Tasks with one answer an utterance: which language, which speaker."""

import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from ossicle.data.utterance import Utterance
from ossicle.probe.collect import FeatureSet
from ossicle.probe.pooled import Standardisation, fit_ridge, learn_mix
from ossicle.probe.report import WEIGHTED, Outcome, TaskNote
from ossicle.probe.tasks import ProbeTask, Splits, drawn_utterances, hashed

_SAME = 1e-3

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Division:
    """Which utterances of which split train, choose and test a head.

    Args:
        classes: Names of the classes.
        source: Splits of train, dev (None: leave one out of training) and test, by name.
        train: Rows in the training split.
        dev: Rows in the dev split.
        test: Rows in the test split.
        excluded: Classes of the test that training lacks.
        remarks: What a reader must know.
    """

    classes: tuple[str, ...]
    source: tuple[str, str | None, str]
    train: NDArray[np.int64]
    dev: NDArray[np.int64]
    test: NDArray[np.int64]
    excluded: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def runs(self) -> bool:
        """Whether there is something to tell apart."""
        return len(self.classes) > 1 and len(self.test) > 0


class UtteranceTask(ProbeTask):
    """A ridge head on mean and standard deviation over an utterance's frames."""

    needs_frames = False

    @abstractmethod
    def answer(self, utterance: Utterance) -> str:
        """The class of an utterance, empty where it is not known."""

    @abstractmethod
    def divide(self, utterances: Splits[tuple[Utterance, ...]]) -> Division:
        """Which utterances train and which test."""

    @override
    def note(self, utterances: Splits[tuple[Utterance, ...]]) -> TaskNote:
        division = self.divide(utterances)
        if not division.runs:
            reason = f"not run: fewer than two known classes of {self.name} in both training and test"
            return TaskNote(self.name, len(division.classes), remarks=(*division.remarks, reason))
        train = [self.answer(_split(utterances, division.source[0])[row]) for row in division.train]
        test = [self.answer(_split(utterances, division.source[2])[row]) for row in division.test]
        common = Counter(train).most_common(1)[0][0]
        return TaskNote(
            task=self.name,
            num_classes=len(division.classes),
            chance_error=1 - test.count(common) / len(test),
            selected_on=division.source[1] or "leaving one training utterance out",
            excluded=division.excluded,
            remarks=division.remarks,
        )

    @override
    def run(self, sets: Splits[FeatureSet], layers: tuple[str, ...], seeds: Sequence[int]) -> Iterator[Outcome]:
        dev = None if sets.dev is None else sets.dev.utterances
        division = self.divide(Splits(sets.train.utterances, sets.test.utterances, dev))
        data, layers = _informative(self._gather(sets, division), layers)
        for seed in seeds:
            rows = drawn_utterances(len(division.train), seed, self.name).nonzero()[0]
            for place, layer in enumerate(layers):
                yield _fit_and_test(
                    _Vectors(*(x_LUE[place] for x_LUE in data.vectors)), data, rows, layer=layer, seed=seed
                )
            if len(layers) > 1:
                yield _fit_and_test_mix(data, rows, seed)

    def _gather(self, sets: Splits[FeatureSet], division: Division) -> "_Data":
        number = {name: place for place, name in enumerate(division.classes)}
        vectors: list[Tensor] = []
        answers: list[Tensor] = []
        for name, rows in zip(division.source, (division.train, division.dev, division.test), strict=True):
            found = _split(sets, name or "train")
            vectors.append(found.pooled_LUE[:, torch.from_numpy(rows)].float())
            labels = [number[self.answer(found.utterances[row])] for row in rows]
            answers.append(torch.tensor(labels, dtype=torch.int64, device=found.pooled_LUE.device))
        return _Data(_Vectors(*vectors), tuple(answers), len(division.classes))


@dataclass(frozen=True)
class _Vectors:
    train: Tensor
    dev: Tensor
    test: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.train, self.dev, self.test))


@dataclass(frozen=True)
class _Data:
    vectors: _Vectors
    answers: tuple[Tensor, ...]
    num_classes: int


def _informative(data: _Data, layers: tuple[str, ...]) -> tuple[_Data, tuple[str, ...]]:
    """Only the layers whose vectors differ: normalising each utterance leaves the same mean and deviation in all."""
    spread_L = data.vectors.train.std(dim=1, correction=0).amax(-1)
    kept = (spread_L > _SAME).nonzero()[:, 0].tolist() or [0]
    vectors = _Vectors(*(x_LUE[kept] for x_LUE in data.vectors))
    return _Data(vectors, data.answers, data.num_classes), tuple(layers[place] for place in kept)


def _fit_and_test(
    vectors: _Vectors,
    data: _Data,
    rows: NDArray[np.int64],
    *,
    layer: str,
    seed: int,
    layer_weights: tuple[float, ...] | None = None,
) -> Outcome:
    began = time.perf_counter()
    train_y, dev_y, test_y = data.answers
    chosen = torch.from_numpy(rows).to(train_y.device)
    scaling = Standardisation.fit(vectors.train[chosen])
    path = fit_ridge(scaling.apply(vectors.train[chosen]), train_y[chosen], data.num_classes)
    if len(dev_y):
        errors_K = (path.predict(scaling.apply(vectors.dev)) != dev_y).float().mean(1)
    else:
        errors_K = (path.left_out_KU != train_y[chosen]).float().mean(1)
    best = len(errors_K) - 1 - int(errors_K.flip(0).argmin())  # of equal ones the strongest penalty
    wrong_U = (path.predict(scaling.apply(vectors.test))[best] != test_y).cpu().numpy()
    return Outcome(
        layer=layer,
        seed=seed,
        errors_U=wrong_U.astype(np.float64),
        counts_U=np.ones(len(wrong_U)),
        selection_error=float(errors_K[best]),
        num_train=len(rows),
        seconds=time.perf_counter() - began,
        layer_weights=layer_weights,
    )


def _fit_and_test_mix(data: _Data, rows: NDArray[np.int64], seed: int) -> Outcome:
    train_y = data.answers[0]
    chosen = torch.from_numpy(rows).to(train_y.device)
    scalings = [Standardisation.fit(x_UE[chosen]) for x_UE in data.vectors.train]
    scaled = [
        torch.stack([scaling.apply(x_UE) for scaling, x_UE in zip(scalings, x_LUE, strict=True)])
        for x_LUE in data.vectors
    ]
    weights_L = learn_mix(scaled[0][:, chosen], train_y[chosen], data.num_classes)
    mixed = _Vectors(*(torch.einsum("l,lue->ue", weights_L, x_LUE) for x_LUE in scaled))
    return _fit_and_test(mixed, data, rows, layer=WEIGHTED, seed=seed, layer_weights=tuple(weights_L.tolist()))


def _split(splits: Splits[T], name: str) -> T:
    found = {"train": splits.train, "dev": splits.dev, "test": splits.test}[name]
    assert found is not None
    return found


@final
class Language(UtteranceTask):
    """Which language is spoken, by voices that training never heard; languages that training lacks are left out."""

    name = "language"

    @override
    def answer(self, utterance: Utterance) -> str:
        return utterance.language

    @override
    def divide(self, utterances: Splits[tuple[Utterance, ...]]) -> Division:
        classes = tuple(sorted({utterance.language for utterance in utterances.train} - {""}))
        tested = {utterance.language for utterance in utterances.test} - {""}
        dev = _known(utterances.dev or (), classes)
        return Division(
            classes=classes,
            source=("train", "dev" if len(dev) else None, "test"),
            train=_known(utterances.train, classes),
            dev=dev,
            test=_known(utterances.test, classes),
            excluded=tuple(sorted(tested - set(classes))),
        )


def _known(utterances: Sequence[Utterance], classes: Sequence[str]) -> NDArray[np.int64]:
    known = set(classes)
    return np.array([row for row, found in enumerate(utterances) if found.language in known], dtype=np.int64)


@final
class Speaker(UtteranceTask):
    """Which of the test split's speakers speaks: half of each one's utterances train the head, half test it.

    The encoder has heard none of them. Where the test split has fewer than two speakers with two utterances each, the
    dev split is asked, then the training split, and the note says so.
    """

    name = "speaker"

    @override
    def answer(self, utterance: Utterance) -> str:
        return utterance.speaker

    @override
    def divide(self, utterances: Splits[tuple[Utterance, ...]]) -> Division:
        candidates = {"test": utterances.test, "dev": utterances.dev or (), "train": utterances.train}
        halves = {name: _halves(found) for name, found in candidates.items()}
        name = next((name for name, (classes, _, _) in halves.items() if len(classes) > 1), "test")
        classes, train, test = halves[name]
        remarks = () if name == "test" else (f"speakers of the {name} split: the test split has fewer than two",)
        return Division(
            classes=classes,
            source=(name, None, name),
            train=train,
            dev=np.zeros(0, dtype=np.int64),
            test=test,
            remarks=remarks,
        )


def _halves(utterances: Sequence[Utterance]) -> tuple[tuple[str, ...], NDArray[np.int64], NDArray[np.int64]]:
    by_speaker: dict[str, list[int]] = {}
    for row in sorted(range(len(utterances)), key=lambda row: hashed(utterances[row].id)):
        if utterances[row].speaker:
            by_speaker.setdefault(utterances[row].speaker, []).append(row)
    able = {speaker: rows for speaker, rows in sorted(by_speaker.items()) if len(rows) > 1}
    train = sorted(row for rows in able.values() for row in rows[::2])
    test = sorted(row for rows in able.values() for row in rows[1::2])
    return tuple(able), np.array(train, dtype=np.int64), np.array(test, dtype=np.int64)
