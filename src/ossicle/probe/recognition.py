"""Phones by CTC, for speech whose phones are known from its text and are not timed."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from ossicle.data.utterance import Utterance
from ossicle.probe.collect import FeatureSet
from ossicle.probe.ctc import CTCTraining, Decoder, fits, phone_errors, train_ctc_head
from ossicle.probe.ctc_recurrent import RECURRENT, train_recurrent_head
from ossicle.probe.linear import Whitening, mix, normalise
from ossicle.probe.report import WEIGHTED, Outcome, TaskNote
from ossicle.probe.tasks import SILENCE, ProbeTask, Splits, drawn_utterances, left_out_tenth

_SHRINKAGE = 1e-2


@dataclass(frozen=True)
class _Spelled:
    """Utterances whose phones are known: features of each, (L, T, D), and its phones."""

    frames: list[Tensor]
    phones: list[list[str]]

    def only(self, keep: Sequence[bool]) -> "_Spelled":
        chosen = [place for place, kept in enumerate(keep) if kept]
        return _Spelled([self.frames[i] for i in chosen], [self.phones[i] for i in chosen])


class PhoneCTC(ProbeTask):
    """Phones of whole utterances by a linear CTC head, scored by phone error rate (edits over phones, by jiwer).

    Args:
        phonemise: Phones of an utterance from its text; an empty list where it has none. Silence is dropped.
        training: The budget of each head; None for the default of its kind.
        every_layer: Whether every layer gets heads of its own, beside the weighted sum.
    """

    name = "ctc"
    needs_frames = True
    default = CTCTraining()
    train_head: Callable[..., Iterator[Decoder]] = staticmethod(train_ctc_head)

    def __init__(
        self,
        phonemise: Callable[[Utterance], list[str]],
        training: CTCTraining | None = None,
        *,
        every_layer: bool = False,
    ) -> None:
        self.phonemise = phonemise
        self.training = training or self.default
        self.every_layer = every_layer
        self._known: dict[str, list[str]] = {}

    @override
    def note(self, utterances: Splits[tuple[Utterance, ...]]) -> TaskNote:
        train = {phone for utterance in utterances.train for phone in self._phones(utterance)}
        test = {phone for utterance in utterances.test for phone in self._phones(utterance)}
        if len(train) < 2 or not test:
            return TaskNote(self.name, len(train), remarks=("not run: no text to phonemise in train and test",))
        unseen = tuple(sorted(test - train))
        remarks = (f"phones that training lacks count as errors: {' '.join(unseen)}",) if unseen else ()
        return TaskNote(
            task=self.name,
            num_classes=len(train),
            chance_error=1.0,
            selected_on="dev" if utterances.dev else "a tenth of the training utterances, left out",
            remarks=remarks,
        )

    @override
    def run(self, sets: Splits[FeatureSet], layers: tuple[str, ...], seeds: Sequence[int]) -> Iterator[Outcome]:
        mixes = len(layers) > 1
        if not mixes or self.every_layer:
            for place, layer in enumerate(layers):
                yield from self._run(sets, slice(place, place + 1), layer, seeds)
        if mixes:
            yield from self._run(sets, slice(None), WEIGHTED, seeds)

    def _run(self, sets: Splits[FeatureSet], places: slice, layer: str, seeds: Sequence[int]) -> Iterator[Outcome]:
        train, select, test = self._gather(sets, places)
        classes = sorted({phone for phones in train.phones for phone in phones})
        number = {phone: place for place, phone in enumerate(classes, start=1)}
        packed_LPD = torch.cat(train.frames, dim=1)
        mixed_PD = mix(packed_LPD, torch.full((len(packed_LPD),), 1 / len(packed_LPD), device=packed_LPD.device))
        one_class_P = torch.zeros(len(mixed_PD), dtype=torch.int64, device=mixed_PD.device)
        whitening = Whitening.fit(mixed_PD, one_class_P, 1, _SHRINKAGE)
        for seed in seeds:
            began = time.perf_counter()
            drawn = train.only(drawn_utterances(len(train.phones), seed, self.name).tolist())
            labels = [[number[phone] for phone in phones] for phones in drawn.phones]
            heads = self.train_head(
                drawn.frames, labels, len(classes) + 1, whitening=whitening, training=self.training, seed=seed
            )
            head, error = _least_error(heads, select, classes)
            errors_U, counts_U = _score(head, test, classes)
            yield Outcome(
                layer=layer,
                seed=seed,
                errors_U=errors_U,
                counts_U=counts_U,
                selection_error=error,
                num_train=len(labels),
                seconds=time.perf_counter() - began,
                layer_weights=tuple(head.layer_weights_L.tolist()) if layer == WEIGHTED else None,
            )

    def _gather(self, sets: Splits[FeatureSet], places: slice) -> tuple[_Spelled, _Spelled, _Spelled]:
        train, test = self._spell(sets.train, places), self._spell(sets.test, places)
        dev = None if sets.dev is None else self._spell(sets.dev, places)
        if dev is None or not dev.phones:
            spelled = [utterance for utterance in sets.train.utterances if self._phones(utterance)]
            left_out = left_out_tenth(spelled)
            dev, train = train.only(left_out.tolist()), train.only((~left_out).tolist())
        pairs = zip(train.phones, train.frames, strict=True)
        return train.only([fits(phones, frames.shape[1]) for phones, frames in pairs]), dev, test

    def _spell(self, found: FeatureSet, places: slice) -> _Spelled:
        frames_LPD = found.frames[places]
        if len(frames_LPD) > 1:
            frames_LPD = normalise(frames_LPD)
        ends = found.offsets.tolist()
        kept = [place for place, utterance in enumerate(found.utterances) if self._phones(utterance)]
        return _Spelled(
            [frames_LPD[:, ends[place] : ends[place + 1]] for place in kept],
            [self._phones(found.utterances[place]) for place in kept],
        )

    def _phones(self, utterance: Utterance) -> list[str]:
        if utterance.id not in self._known:
            phones = self.phonemise(utterance) if utterance.text else []
            self._known[utterance.id] = [phone for phone in phones if phone != SILENCE]
        return self._known[utterance.id]


@final
class PhoneRecurrentCTC(PhoneCTC):
    """The same by a recurrent head, which may gather what a frame does not hold by itself."""

    name = "ctc_recurrent"
    default = RECURRENT
    train_head = staticmethod(train_recurrent_head)


def _least_error(heads: Iterator[Decoder], select: _Spelled, classes: Sequence[str]) -> tuple[Decoder, float]:
    """The head of the epoch with the least selection error, and that error; of equal ones the first."""
    scored: list[tuple[float, Decoder]] = []
    for head in heads:
        errors_U, counts_U = _score(head, select, classes)
        scored.append((float(errors_U.sum() / counts_U.sum()), head))
    error, head = min(scored, key=lambda pair: pair[0])
    return head, error


def _score(head: Decoder, spelled: _Spelled, classes: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    found = [[classes[cls - 1] for cls in head.decode(frames)] for frames in spelled.frames]
    return phone_errors(spelled.phones, found)
