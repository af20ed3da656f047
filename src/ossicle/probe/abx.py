"""ABX as a probe: no head is trained, features are compared as they are."""

import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import final

import numpy as np
from typing_extensions import override

from ossicle.data.utterance import Utterance
from ossicle.probe.collect import FeatureSet
from ossicle.probe.report import Outcome, TaskNote
from ossicle.probe.tasks import ProbeTask, Splits
from ossicle.stage.abx import AbxResult, AbxSetting, abx, comparable, tokens_of


class AbxTask(ProbeTask):
    """How often a phone is nearer to another token of itself than to a token of another phone, on ``test``.

    Triphones that differ in their middle alone, by the angle between frames: :mod:`ossicle.stage.abx`. Layers are
    chosen on ``dev``, or on the training utterances where there is no dev split. The units of the error and of its
    interval are ordered pairs of phones, not utterances. Nothing is trained, so one seed is reported.
    """

    needs_frames = True

    @property
    @abstractmethod
    def setting(self) -> AbxSetting:
        """Which tokens are compared."""

    @override
    def note(self, utterances: Splits[tuple[Utterance, ...]]) -> TaskNote:
        selected = utterances.dev or utterances.train
        phones = {phone.symbol for utterance in utterances.test for phone in utterance.phones}
        for name, found in (("test", utterances.test), ("dev" if utterances.dev else "train", selected)):
            if not comparable(found, self.setting):
                reason = f"not run: the {name} split has no two phones between the same neighbours to compare"
                return TaskNote(self.name, len(phones), remarks=(reason,))
        return TaskNote(
            task=self.name,
            num_classes=len(phones),
            chance_error=0.5,
            selected_on="dev" if utterances.dev else "the training utterances",
            remarks=("the interval is over ordered pairs of phones",),
        )

    @override
    def run(self, sets: Splits[FeatureSet], layers: tuple[str, ...], seeds: Sequence[int]) -> Iterator[Outcome]:
        selected = sets.dev or sets.train
        for place, layer in enumerate(layers):
            began = time.perf_counter()
            chosen_by = self._measure(selected, place)
            found = self._measure(sets.test, place)
            errors = np.array([found.pairs[pair] for pair in sorted(found.pairs)])
            yield Outcome(
                layer=layer,
                seed=seeds[0],
                errors_U=errors,
                counts_U=np.ones(len(errors)),
                selection_error=chosen_by.error,
                num_train=0,
                seconds=time.perf_counter() - began,
            )

    def _measure(self, found: FeatureSet, place: int) -> AbxResult:
        counts = np.diff(found.offsets).tolist()
        tokens = tokens_of(found.utterances, counts, found.clock, any_context=self.setting.any_context)
        return abx(found.frames[place], tokens, self.setting)


@final
class AbxWithin(AbxTask):
    """All three tokens are of one speaker."""

    name = "abx"

    @property
    @override
    def setting(self) -> AbxSetting:
        return AbxSetting()


@final
class AbxAcross(AbxTask):
    """X is of another speaker than A and B: what is left of voices is in the way."""

    name = "abx_across"

    @property
    @override
    def setting(self) -> AbxSetting:
        return AbxSetting(across_speakers=True)
