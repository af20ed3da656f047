"""A recurrent CTC head on frozen frames: the second way of asking what they say, since rankings change with the head.

MP3S (Zaiem et al., arXiv 2308.14456) shows that one kind of head does not settle which features are better.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from ossicle.core.seeds import derive_seed, generator
from ossicle.core.shapes import Float
from ossicle.probe.ctc import CTCTraining, collapse, ctc_loss, late, rise_and_fall
from ossicle.probe.linear import Whitening, mix

RECURRENT = CTCTraining(epochs=15, batch_utterances=16, learning_rate=3e-3, weight_decay=1e-4)
"""The budget of a recurrent head."""
_WIDTH = 128
_DROPOUT = 0.2
_MAX_NORM = 5.0


@final
class RecurrentCTC(nn.Module):
    """log-probabilities = log_softmax(linear(BiLSTM(whitened sum of layers))); class 0 is the blank.

    Args:
        num_layers: Layers that are summed (L).
        whitening: Of the sum with equal shares: what the recurrence reads.
        num_classes: Classes with the blank (V).
        width: Cells in either direction.
    """

    def __init__(self, num_layers: int, whitening: Whitening, num_classes: int, width: int = _WIDTH) -> None:
        super().__init__()
        self.whitening = whitening
        self.share_L = nn.Parameter(torch.zeros(num_layers))
        self.dropout = nn.Dropout(_DROPOUT)
        self.lstm = nn.LSTM(whitening.matrix_DD.shape[1], width, bidirectional=True)
        self.out = nn.Linear(2 * width, num_classes)

    @property
    def layer_weights_L(self) -> Tensor:
        """Weights of the layers, which sum to 1, shape (L,)."""
        return self.share_L.detach().softmax(0)

    def forward(self, frames: Sequence[Float[Tensor, "L T D"]]) -> tuple[Tensor, list[int]]:
        """Logits of every utterance end to end, shape (P, V), and frames of each."""
        lengths = [x_LTD.shape[1] for x_LTD in frames]
        mixed_PD = mix(torch.cat(list(frames), dim=1), self.share_L.softmax(0))
        whitened = self.dropout(self.whitening.apply(mixed_PD)).split(lengths)
        packed = pack_sequence(list(whitened), enforce_sorted=False)
        hidden_TBD, _ = pad_packed_sequence(self.lstm(packed)[0])
        hidden_PD = torch.cat([hidden_TBD[:length, row] for row, length in enumerate(lengths)])
        return self.out(self.dropout(hidden_PD)), lengths

    @torch.no_grad()
    def decode(self, x_LTD: Float[Tensor, "L T D"]) -> list[int]:
        """Greedy decoding of one utterance: the best class of each frame, repeats merged, blanks dropped."""
        self.eval()
        return collapse(self([x_LTD])[0].argmax(-1).tolist())


def train_recurrent_head(
    frames: Sequence[Float[Tensor, "L T D"]],
    labels: Sequence[Sequence[int]],
    num_classes: int,
    *,
    whitening: Whitening,
    training: CTCTraining,
    seed: int,
) -> Iterator[RecurrentCTC]:
    """Learn a recurrent head, and the weights of layers where there is more than one; the head after each epoch.

    Args:
        frames: Frames of every training utterance, each of shape (L, T, D); normalised where L > 1.
        labels: Classes of every utterance, in [1, num_classes).
        num_classes: Classes with the blank (V).
        whitening: Of the sum with equal shares.
        training: The budget.
        seed: Draws the first weights, the order and dropout.
    """
    devices = [frames[0].device] if frames[0].is_cuda else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(seed, "probe/recurrent"))
        head = RecurrentCTC(len(frames[0]), whitening, num_classes).to(frames[0].device)
        state = torch.random.get_rng_state()
    body = [parameter for name, parameter in head.named_parameters() if name != "share_L"]
    groups = [
        {"params": body, "lr": training.learning_rate, "weight_decay": training.weight_decay},
        {"params": [head.share_L], "lr": training.mixing_rate, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups)
    updates = training.epochs * math.ceil(len(frames) / training.batch_utterances)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, [rise_and_fall(updates), late(updates)])
    targets = [torch.tensor(label, dtype=torch.int64) for label in labels]
    for epoch in range(training.epochs):
        order = torch.randperm(len(frames), generator=generator(seed, epoch, 0, "probe/order"))
        head.train()
        with torch.random.fork_rng(devices=devices):
            torch.random.set_rng_state(state)
            for batch in order.split(training.batch_utterances):
                chosen = batch.tolist()
                logits_PV, lengths = head([frames[i] for i in chosen])
                ctc_loss(logits_PV, lengths, [targets[i] for i in chosen]).backward()
                nn.utils.clip_grad_norm_(head.parameters(), _MAX_NORM)
                optimiser.step()
                optimiser.zero_grad()
                schedule.step()
            state = torch.random.get_rng_state()
        yield copy.deepcopy(head)
