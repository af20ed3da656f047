"""Attention behind one door: callers state shapes, masks and dropout; the kernel is chosen here, once a case.

The choice and what was passed over are logged once for each case. Nothing here reads a device's values on the host,
except packed attention where no fused kernel serves.
"""

import logging

import torch
from torch import Tensor

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Bool, Float, Int
from ossicle.ops.attention_backends import BACKENDS, Case

AUTO = "auto"
_logger = logging.getLogger(__name__)
_choices: dict[tuple[str, Case], str] = {}


def attend(
    q_BTHK: Float[Tensor, "B T H K"],
    k_BTHK: Float[Tensor, "B T H K"],
    v_BTHK: Float[Tensor, "B T H K"],
    *,
    valid_BT: Bool[Tensor, "B T"] | None = None,
    dropout: float = 0.0,
    window: int | None = None,
    backend: str = AUTO,
) -> Float[Tensor, "B T H K"]:
    """Bidirectional softmax attention within each row, scores scaled by 1/sqrt(K) (arXiv 1706.03762, equation 1).

    Args:
        q_BTHK: Queries, shape (B, T, H, K).
        k_BTHK: Keys, same shape.
        v_BTHK: Values, same shape.
        valid_BT: True where a frame is real, or None where every frame is; the others are not attended to.
        dropout: Probability with which an attention weight is dropped; 0 outside training.
        window: Frames to each side that a frame attends to, or None for all.
        backend: A kernel's name, or ``auto``.

    Returns:
        Mixed values, shape (B, T, H, K).

    Raises:
        ConfigError: If the named backend is unknown or cannot serve this case.
    """
    name = choose(
        backend,
        q_BTHK.device.type,
        q_BTHK.dtype,
        q_BTHK.shape[-1],
        dropout=dropout > 0,
        masked=valid_BT is not None,
        windowed=window is not None,
        packed=False,
    )
    return BACKENDS[name].dense(q_BTHK, k_BTHK, v_BTHK, valid_BT=valid_BT, dropout=dropout, window=window)


def attend_packed(
    q_PHK: Float[Tensor, "P H K"],
    k_PHK: Float[Tensor, "P H K"],
    v_PHK: Float[Tensor, "P H K"],
    cu_seqlens: Int[Tensor, " edges"],
    max_frames: int,
    *,
    dropout: float = 0.0,
    window: int | None = None,
    backend: str = AUTO,
) -> Float[Tensor, "P H K"]:
    """Attention within each of several utterances that lie end to end in one row: :func:`attend` without padding.

    Args:
        q_PHK: Queries of all utterances, shape (P, H, K).
        k_PHK: Keys, same shape.
        v_PHK: Values, same shape.
        cu_seqlens: Where utterances start and end: 0 and the cumulative counts of frames, int32.
        max_frames: Frames of the longest utterance.
        dropout: Probability with which an attention weight is dropped; 0 outside training.
        window: Frames to each side that a frame attends to, or None for all.
        backend: A kernel's name, or ``auto``.

    Returns:
        Mixed values, shape (P, H, K).

    Raises:
        ConfigError: If the named backend is unknown or cannot serve this case.
    """
    name = choose(
        backend,
        q_PHK.device.type,
        q_PHK.dtype,
        q_PHK.shape[-1],
        dropout=dropout > 0,
        masked=False,
        windowed=window is not None,
        packed=True,
    )
    return BACKENDS[name].packed(
        q_PHK, k_PHK, v_PHK, edges=cu_seqlens.to(torch.int32), longest=max_frames, dropout=dropout, window=window
    )


# torch.compile runs this while it traces and keeps the answer, so that neither the choice nor its log line breaks a
# graph; it therefore takes and returns plain values only.
@torch.compiler.assume_constant_result
def choose(
    backend: str,
    device: str,
    dtype: torch.dtype,
    head_dim: int,
    *,
    dropout: bool,
    masked: bool,
    windowed: bool,
    packed: bool,
) -> str:
    """Name of the kernel that serves a case, chosen and logged when the case is first met."""
    case = Case(device, dtype, head_dim, dropout, masked, windowed, packed)
    chosen = _choices.get((backend, case))
    if chosen is None:
        chosen = _choices[(backend, case)] = _first_able(case) if backend == AUTO else _forced(backend, case)
    return chosen


def check_backend(backend: str) -> None:
    """Refuse a backend that this installation does not have, before a device is asked for.

    Raises:
        ConfigError: If the name is unknown, or the package behind it cannot be imported.
    """
    if backend == AUTO:
        return
    if backend not in BACKENDS:
        raise ConfigError(f"attention has no backend {backend!r}", f"name one of: {_offer({})}")
    if problem := BACKENDS[backend].missing():
        raise ConfigError(f"attention backend {backend!r} {problem}", f"name one of: {_offer({})}")


def _preference(case: Case) -> tuple[str, ...]:
    """Backends from best to worst: on an H100 cuDNN is ahead on whole rows, flash where rows are packed or windowed."""
    if case.windowed:
        return ("flash_attn", "varlen", "blocked", "sdpa", "reference")
    if case.packed:
        return ("flash_attn", "varlen", "native", "sdpa", "reference")
    if case.device == "cpu":
        return ("native", "sdpa", "reference")
    return ("sdpa", "flash_attn", "varlen", "reference")


def _first_able(case: Case) -> str:
    """The best backend that serves a case, logged with what was passed over and why."""
    passed_over = []
    for name in _preference(case):
        problem = BACKENDS[name].refusal(case)
        if problem is None:
            reason = f"; passed over: {', '.join(passed_over)}" if passed_over else ""
            # On the meta device nothing runs: that a count of operations was taken is nobody's news.
            level = logging.DEBUG if case.device == "meta" else logging.INFO
            _logger.log(level, "attention (%s) runs on %s%s", case, name, reason)
            return name
        passed_over.append(f"{name} {problem}")
    raise ConfigError(f"no attention kernel serves {case}", "; ".join(passed_over))


def _forced(backend: str, case: Case) -> str:
    """The backend that a config names, where it can serve."""
    check_backend(backend)
    if problem := BACKENDS[backend].refusal(case):
        refusals = {name: other.refusal(case) for name, other in BACKENDS.items()}
        raise ConfigError(
            f"attention backend {backend!r} cannot serve {case}: it {problem}", f"name one of: {_offer(refusals)}"
        )
    _logger.info("attention (%s) runs on %s; the config names it", case, backend)
    return backend


def _offer(refusals: dict[str, str | None]) -> str:
    """The backends to choose from, then those that are out and why."""
    problems = {name: refusals.get(name) or backend.missing() for name, backend in BACKENDS.items()}
    able = ", ".join([AUTO, *(name for name, problem in problems.items() if problem is None)])
    out = "; ".join(f"{name} {problem}" for name, problem in problems.items() if problem is not None)
    return f"{able} (not here: {out})" if out else able
