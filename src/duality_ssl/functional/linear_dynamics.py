r"""Why stop-gradient and EMA do not collapse: linear encoder and predictor, as flows.

An encoder ``A`` ``(n, m)`` and a predictor ``B`` ``(n, n)`` predict a target ``C`` ``(n, m)`` of
the other view: ``B A x`` is to be ``C y`` for inputs ``x, y`` of m dimensions. With
:math:`X = \mathbb{E}[x x^\top]`, :math:`Y = \mathbb{E}[y x^\top]` and weight decay λ,

- the *gradient flow* descends :func:`objective`, where ``C`` is ``A`` and has a gradient;
- *stop-gradient* moves as if ``C`` were a constant, and then sets ``C`` to ``A``;
- *EMA* does the same with a ``C`` that follows ``A``.

A flow gets a state, ``(A, B)`` or ``(A, B, C)``, and a :class:`Problem`, and returns the state's
derivative in time. States may have leading batch dimensions (many trials at once), but for the
Jacobian. All keep the precision of their inputs: float64 is meant.

Source: Ponce et al., ICLR 2026, https://arxiv.org/abs/2507.01028. They state lemma 4.3, the
propositions 3.2, 4.5, 4.10 and 4.11, for ``n > m``.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

State = tuple[Tensor, ...]
Flow = Callable[..., State]


@dataclass(frozen=True)
class Problem:
    r"""Second moments of the inputs, each of shape ``(..., m, m)``, and the weight decay.

    Args:
        xx: :math:`X = \mathbb{E}[x x^\top]`.
        yx: :math:`Y = \mathbb{E}[y x^\top]`.
        yy: :math:`\mathbb{E}[y y^\top]`, which only the objective and its gradient need.
        weight_decay: λ, a number or a tensor that broadcasts to the moments.

    Raises:
        ValueError: If the moments do not share one shape ``(..., m, m)``.
    """

    xx: Tensor
    yx: Tensor
    yy: Tensor
    weight_decay: float | Tensor

    def __post_init__(self) -> None:
        shapes = [tuple(moment.shape) for moment in (self.xx, self.yx, self.yy)]
        if len({*shapes}) > 1 or len(shapes[0]) < 2 or shapes[0][-1] != shapes[0][-2]:
            raise ValueError(
                f"Expected `xx`, `yx` and `yy` to share one shape (..., m, m), but got {shapes}."
            )


def residual(encoder: Tensor, predictor: Tensor, target: Tensor, problem: Problem) -> Tensor:
    r""":math:`R = B A X - C Y = \mathbb{E}[(B A x - C y)\, x^\top]`, of shape ``(..., n, m)``.

    Raises:
        ValueError: If the shapes are not A, C ``(..., n, m)``, B ``(..., n, n)``.
    """
    n, m = encoder.shape[-2], problem.xx.shape[-1]
    if encoder.shape[-1] != m or predictor.shape[-2:] != (n, n) or target.shape != encoder.shape:
        got = ", ".join(str(tuple(part.shape)) for part in (encoder, predictor, target))
        raise ValueError(
            f"Expected the encoder and the target to be (..., n, {m}) and the predictor to be "
            f"(..., n, n), but got {got}."
        )
    return predictor @ encoder @ problem.xx - target @ problem.yx


def objective(encoder: Tensor, predictor: Tensor, problem: Problem) -> Tensor:
    r""":math:`E = \frac12 \mathbb{E}\|B A x - A y\|^2 + \frac λ2 (\|A\|_F^2 + \|B\|_F^2)`.

    Returns:
        Shape ``(...)``: a number a trial.

    Example:
        >>> one = torch.ones(1, 1)
        >>> objective(one, 2 * one, Problem(one, one, one, 0.2))  # 1/2 + 0.1 * (1 + 4)
        tensor(1.)
    """
    to_x = residual(encoder, predictor, encoder, problem)
    to_y = _residual_of_target(encoder, predictor, problem)
    error = _total(predictor @ encoder * to_x) + _total(encoder * to_y)
    decay = _total(problem.weight_decay * encoder**2) + _total(problem.weight_decay * predictor**2)
    return (error + decay) / 2


def gradient_flow(encoder: Tensor, predictor: Tensor, problem: Problem) -> State:
    r"""Derivative of ``(A, B)`` down the gradient of :func:`objective`: always collapses.

    .. math:: \dot A = -(B^\top R + A\,\mathbb{E}[y y^\top] - B A Y^\top + λA), \qquad
        \dot B = -(R A^\top + λB), \qquad C = A.
    """
    d_encoder, d_predictor = stop_gradient_flow(encoder, predictor, problem)
    return d_encoder - _residual_of_target(encoder, predictor, problem), d_predictor


def stop_gradient_flow(encoder: Tensor, predictor: Tensor, problem: Problem) -> State:
    r"""Derivative of ``(A, B)`` with the target's gradient stopped, ``C = A``.

    .. math:: \dot A = -(B^\top R + λA), \qquad \dot B = -(R A^\top + λB).
    """
    return _towards(encoder, encoder, predictor, problem)


def ema_flow(
    encoder: Tensor, predictor: Tensor, target: Tensor, problem: Problem, *, rate: float
) -> State:
    r"""Derivative of ``(A, B, C)``: as :func:`stop_gradient_flow`, and :math:`\dot C = ρ(A - C)`.

    Euler's step of this flow is the update ``C <- αC + (1 - α)A`` with ``α = 1 - rate * step``.

    Args:
        encoder: A, shape ``(..., n, m)``.
        predictor: B, shape ``(..., n, n)``.
        target: C, shape ``(..., n, m)``.
        problem: Moments and weight decay.
        rate: ρ, how fast the target follows. Stop-gradient is its limit at infinity.
    """
    return *_towards(target, encoder, predictor, problem), rate * (encoder - target)


def integrate(
    flow: Flow, state: State, problem: Problem, times: Sequence[float], step: float = 0.05
) -> State:
    """Follow a flow by the classical Runge-Kutta method of order 4.

    Args:
        flow: One of the flows above.
        state: The tensors at ``times[0]``.
        problem: Moments and weight decay.
        times: Increasing times at which the state is returned.
        step: The longest step; the steps between two times are equal.

    Returns:
        The tensors of the state, each with a leading dimension ``len(times)``.

    Raises:
        ValueError: If the times do not increase or the step is not positive.

    Example:
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> decay = Problem(0 * one, 0 * one, 0 * one, 1.0)
        >>> encoder, predictor = integrate(stop_gradient_flow, (one, one), decay, [0, 1, 2])
        >>> encoder.flatten()
        tensor([1.0000, 0.3679, 0.1353], dtype=torch.float64)
    """
    spans = [end - start for start, end in itertools.pairwise(times)]
    if step <= 0 or any(span <= 0 for span in spans):
        raise ValueError(
            f"Expected increasing times and a positive step, but got times={times}, step={step}."
        )
    states = [state]
    for span in spans:
        steps = math.ceil(span / step - 1e-9)  # 0.15 / 0.05 is a little more than 3
        for _ in range(steps):
            state = _runge_kutta(flow, state, problem, span / steps)
        states.append(state)
    return tuple(torch.stack(parts) for parts in zip(*states, strict=True))


def _residual_of_target(encoder: Tensor, predictor: Tensor, problem: Problem) -> Tensor:
    """``E[(A y - B A x) yᵀ]``: what stop-gradient leaves out."""
    return encoder @ problem.yy - predictor @ encoder @ problem.yx.mT


def _towards(target: Tensor, encoder: Tensor, predictor: Tensor, problem: Problem) -> State:
    """Derivative of ``(A, B)`` towards a target that is held."""
    r = residual(encoder, predictor, target, problem)
    d_encoder = -(predictor.mT @ r + problem.weight_decay * encoder)
    return d_encoder, -(r @ encoder.mT + problem.weight_decay * predictor)


def _runge_kutta(flow: Flow, state: State, problem: Problem, step: float) -> State:
    """One step of the classical method of order 4."""

    def slope(earlier: State, part: float) -> State:
        moved = (x + part * step * d for x, d in zip(state, earlier, strict=True))
        return flow(*moved, problem)

    first = flow(*state, problem)
    second = slope(first, 0.5)
    third = slope(second, 0.5)
    fourth = slope(third, 1.0)
    slopes = zip(first, second, third, fourth, strict=True)
    means = ((a + 2 * b + 2 * c + d) / 6 for a, b, c, d in slopes)
    return tuple(x + step * mean for x, mean in zip(state, means, strict=True))


def _total(x: Tensor) -> Tensor:
    """Sum over rows and columns."""
    return x.sum(dim=(-2, -1))
