"""A linear CTC head on frozen frames: what tests phones where no one has timed them."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import jiwer
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ossicle.core.seeds import generator
from ossicle.core.shapes import Float, Int64
from ossicle.probe.linear import Whitening, discriminant, mix

BLANK = 0


class Decoder(Protocol):
    """A trained head: frames to classes."""

    @property
    def layer_weights_L(self) -> Tensor:
        """Weights of the layers, which sum to 1, shape (L,)."""

    def decode(self, x_LTD: Float[Tensor, "L T D"]) -> list[int]:
        """Classes of one utterance, in order."""


@dataclass(frozen=True, slots=True)
class CTCTraining:
    """The budget of a CTC head, the same for every feature and layer.

    Args:
        epochs: Passes over the training utterances.
        batch_utterances: Utterances an update.
        learning_rate: Adam's highest rate, on whitened frames; rises over a tenth of the updates, then falls to 0.
        mixing_rate: Adam's rate for the weights of the layers, which stay equal for the first third of the updates.
        weight_decay: Decoupled weight decay of the head.
    """

    epochs: int = 20
    batch_utterances: int = 8
    learning_rate: float = 1e-2
    mixing_rate: float = 0.05
    weight_decay: float = 1e-3


@dataclass(frozen=True, slots=True)
class CTCHead:
    """log-probabilities = log_softmax(sum of layers @ weight + bias); class 0 is the blank.

    Args:
        weight_DV: On the sum of the layers, shape (D, V).
        bias_V: Shape (V,).
        layer_weights_L: Weights of the layers, which sum to 1, shape (L,).
    """

    weight_DV: Tensor
    bias_V: Tensor
    layer_weights_L: Tensor

    def decode(self, x_LTD: Float[Tensor, "L T D"]) -> list[int]:
        """Greedy decoding of one utterance: the best class of each frame, repeats merged, blanks dropped."""
        mixed = mix(x_LTD, self.layer_weights_L)
        return collapse((mixed @ self.weight_DV + self.bias_V).argmax(-1).tolist())


def collapse(path: Sequence[int]) -> list[int]:
    """A path of frame classes as a string of classes (Graves et al. 2006, doi:10.1145/1143844.1143891, equation 1)."""
    return [cls for i, cls in enumerate(path) if cls != BLANK and (i == 0 or cls != path[i - 1])]


def fits(labels: Sequence[int] | Sequence[str], num_frames: int) -> bool:
    """Whether a path of num_frames frames can spell the labels: each needs one, and a blank between two alike."""
    repeats = sum(a == b for a, b in itertools.pairwise(labels))
    return 0 < len(labels) + repeats <= num_frames


def train_ctc_head(
    frames: Sequence[Float[Tensor, "L T D"]],
    labels: Sequence[Sequence[int]],
    num_classes: int,
    *,
    whitening: Whitening,
    training: CTCTraining,
    seed: int,
) -> Iterator[CTCHead]:
    """Learn a head, and the weights of layers where there is more than one; the head after each epoch.

    Args:
        frames: Frames of every training utterance, each of shape (L, T, D); normalised where L > 1.
        labels: Classes of every utterance, in [1, num_classes).
        num_classes: Classes with the blank (V).
        whitening: Of the sum with equal shares: the coordinates that the head is trained in.
        training: The budget.
        seed: Draws the order.
    """
    weight_DV, bias_V = (tensor.requires_grad_() for tensor in flat_start(frames, labels, num_classes, whitening))
    share_L = torch.zeros(len(frames[0]), device=weight_DV.device, requires_grad=True)
    groups = [
        {"params": [weight_DV, bias_V], "lr": training.learning_rate, "weight_decay": training.weight_decay},
        {"params": [share_L], "lr": training.mixing_rate, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups)
    updates = training.epochs * math.ceil(len(frames) / training.batch_utterances)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, [rise_and_fall(updates), late(updates)])
    targets = [torch.tensor(label, dtype=torch.int64) for label in labels]
    for epoch in range(training.epochs):
        order = torch.randperm(len(frames), generator=generator(seed, epoch, 0, "probe/order"))
        for batch in order.split(training.batch_utterances):
            chosen = batch.tolist()
            packed_LPD = torch.cat([frames[i] for i in chosen], dim=1)
            mixed_PD = mix(packed_LPD, share_L.softmax(0)) - whitening.mean_D
            logits_PV = mixed_PD @ (whitening.matrix_DD @ weight_DV) + bias_V
            ctc_loss(logits_PV, [frames[i].shape[1] for i in chosen], [targets[i] for i in chosen]).backward()
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
        head = whitening.fold(weight_DV.detach(), bias_V.detach())
        yield CTCHead(head.weight_DV, head.bias_V, share_L.detach().softmax(0))


def flat_start(
    frames: Sequence[Float[Tensor, "L T D"]], labels: Sequence[Sequence[int]], num_classes: int, whitening: Whitening
) -> tuple[Float[Tensor, "D V"], Float[Tensor, " V"]]:
    """The discriminant of labels spread evenly over their utterances, as recognisers without alignments were begun.

    From zero, CTC first learns to say nothing but blanks, and how long it stays there differs between features.
    """
    spread = [
        torch.tensor(label)[torch.arange(x.shape[1]) * len(label) // x.shape[1]]
        for x, label in zip(frames, labels, strict=True)
    ]
    z_PD = torch.cat([whitening.apply(x.mean(0)) for x in frames])
    weight_DV, bias_V = discriminant(z_PD, torch.cat(spread).to(z_PD.device), num_classes)
    weight_DV[:, BLANK] = 0
    bias_V[BLANK] = bias_V[1:].logsumexp(0)
    return weight_DV, bias_V


def rise_and_fall(updates: int) -> Callable[[int], float]:
    """Up to 1 over a tenth of the updates, then down to 0."""
    peak = max(1, updates // 10)
    return lambda step: min((step + 1) / peak, max(0.0, (updates - step) / max(1, updates - peak)))


def late(updates: int) -> Callable[[int], float]:
    """0 for a third of the updates: while a head still says little, the layer that tells it least fits best."""
    start = updates // 3
    return lambda step: 0.0 if step < start else (updates - step) / (updates - start)


def ctc_loss(logits_PV: Tensor, lengths: Sequence[int], targets: Sequence[Int64[Tensor, " N"]]) -> Tensor:
    """CTC's loss of utterances that lie end to end: mean over utterances of the loss a label.

    Args:
        logits_PV: Shape (P, V), the frames of all utterances.
        lengths: Frames of each.
        targets: Classes of each.
    """
    log_probs_TBV = torch.nn.utils.rnn.pad_sequence(list(logits_PV.log_softmax(-1).split(list(lengths))))
    return functional.ctc_loss(
        log_probs_TBV,
        torch.cat(list(targets)).to(logits_PV.device),
        torch.tensor(lengths),
        torch.tensor([len(target) for target in targets]),
        blank=BLANK,
    )


def phone_errors(
    references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Edits and phones of every utterance, by jiwer on symbols as words.

    Args:
        references: What was said; no utterance is empty.
        hypotheses: What was decoded.

    Returns:
        Substitutions, deletions and insertions together, shape (U,), and phones of the references, shape (U,).
    """
    output = jiwer.process_words([" ".join(r) for r in references], [" ".join(h) for h in hypotheses])
    edits = [
        sum(
            max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
            for chunk in chunks
            if chunk.type != "equal"
        )
        for chunks in output.alignments
    ]
    return np.array(edits, dtype=np.float64), np.array([len(r) for r in references], dtype=np.float64)
