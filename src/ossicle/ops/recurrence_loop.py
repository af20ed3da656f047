"""The light gated recurrence as loops over frames in torch: for devices that no fused kernel serves.

The gradient is written out, since a graph of every frame's small operations costs more than they do.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Run(NamedTuple):
    """What the way there gives: the states, and what the way back needs beside them.

    Args:
        states_RBTU: States, shape (R, B, T, U).
        active_RBTW: Update gates and candidates behind their nonlinearities, shape (R, B, T, 2U).
        normal_RBTW: Normalised recurrent products, same shape; empty where nothing is normalised.
        scales_RBT: One over the products' deviations, shape (R, B, T); empty where nothing is normalised.
    """

    states_RBTU: Tensor
    active_RBTW: Tensor
    normal_RBTW: Tensor
    scales_RBT: Tensor

    @classmethod
    def empty(cls, gates_RBTW: Tensor, epsilon: float | None) -> "Run":
        """Room for the run of some gates; ``epsilon`` is None where nothing is normalised."""
        directions, rows, frames, wide = gates_RBTW.shape
        shape = () if epsilon is None else (directions, rows, frames)
        return cls(
            gates_RBTW.new_empty(directions, rows, frames, wide // 2),
            torch.empty_like(gates_RBTW),
            gates_RBTW.new_empty(*shape, wide if shape else 0),
            gates_RBTW.new_empty(shape or 0),
        )


def forward(gates_RBTW: Tensor, recurrent_RWU: Tensor, epsilon: float | None) -> Run:
    """States and what the way back needs of the way there.

    Args:
        gates_RBTW: What each frame brings to the update gates and the candidates, shape (R, B, T, 2U).
        recurrent_RWU: Recurrent weights, shape (R, 2U, U).
        epsilon: Of the layer norm over a frame's recurrent products, or None where there is none.

    """
    units = recurrent_RWU.shape[-1]
    transposed_RUW = recurrent_RWU.mT.contiguous()
    state_RBU = gates_RBTW.new_zeros(*gates_RBTW.shape[:2], units)
    states, actives, normals, scales = [], [], [], []
    for gates_RBW in gates_RBTW.unbind(2):
        product_RBW = torch.bmm(state_RBU, transposed_RUW)
        if epsilon is not None:
            variance_RB1, mean_RB1 = torch.var_mean(product_RBW, -1, correction=0, keepdim=True)
            scale_RB1 = torch.rsqrt(variance_RB1 + epsilon)
            product_RBW = (product_RBW - mean_RB1) * scale_RB1
            normals.append(product_RBW)
            scales.append(scale_RB1[..., 0])
        sum_RBW = gates_RBW + product_RBW
        update_RBU = sum_RBW[..., :units].sigmoid()
        candidate_RBU = sum_RBW[..., units:].relu()
        state_RBU = torch.lerp(candidate_RBU, state_RBU, update_RBU)
        states.append(state_RBU)
        actives.append(torch.cat([update_RBU, candidate_RBU], -1))
    empty = gates_RBTW.new_empty(0)
    normal_RBTW, scales_RBT = (torch.stack(x, 2) if x else empty.clone() for x in (normals, scales))
    return Run(torch.stack(states, 2), torch.stack(actives, 2), normal_RBTW, scales_RBT)


def backward(grad_RBTU: Tensor, run: Run, recurrent_RWU: Tensor, epsilon: float | None) -> tuple[Tensor, Tensor]:
    """Gradients of the gates and of the recurrent products, each of shape (R, B, T, 2U).

    Args:
        grad_RBTU: Gradient of the states, shape (R, B, T, U).
        run: What :func:`forward` gave.
        recurrent_RWU: Recurrent weights, shape (R, 2U, U).
        epsilon: As in :func:`forward`.

    Returns:
        Both; they are one tensor where nothing is normalised.
    """
    carry_RBU = torch.zeros_like(grad_RBTU[:, :, 0])
    before_RBTU = shifted(run.states_RBTU)
    gates, products = [], []
    for t in range(grad_RBTU.shape[2] - 1, -1, -1):
        update_RBU, candidate_RBU = run.active_RBTW[:, :, t].chunk(2, -1)
        grad_RBU = grad_RBTU[:, :, t] + carry_RBU
        of_update_RBU = grad_RBU * (before_RBTU[:, :, t] - candidate_RBU) * update_RBU * (1 - update_RBU)
        of_candidate_RBU = (grad_RBU * (1 - update_RBU)).masked_fill(candidate_RBU <= 0, 0)
        of_gates_RBW = of_product_RBW = torch.cat([of_update_RBU, of_candidate_RBU], -1)
        if epsilon is not None:
            normal_RBW = run.normal_RBTW[:, :, t]
            along_RB1 = (of_gates_RBW * normal_RBW).mean(-1, keepdim=True)
            centred_RBW = of_gates_RBW - of_gates_RBW.mean(-1, keepdim=True) - normal_RBW * along_RB1
            of_product_RBW = run.scales_RBT[:, :, t, None] * centred_RBW
            products.append(of_product_RBW)
        gates.append(of_gates_RBW)
        carry_RBU = torch.baddbmm(grad_RBU * update_RBU, of_product_RBW, recurrent_RWU)
    grad_gates_RBTW = torch.stack(gates[::-1], 2)
    return grad_gates_RBTW, torch.stack(products[::-1], 2) if products else grad_gates_RBTW


def shifted(states_RBTU: Tensor) -> Tensor:
    """The state before each frame: zero before the first."""
    return functional.pad(states_RBTU[:, :, :-1], (0, 0, 1, 0))
