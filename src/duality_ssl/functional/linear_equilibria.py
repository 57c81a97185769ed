r"""Where the flows of :mod:`~duality_ssl.functional.linear_dynamics` go, and what they keep.

The bound on the gradient flow, the asymmetry that makes stop-gradient and EMA no gradient, the
balance of encoder and predictor, and the equilibria with their stability. Notation as there.

Source: Ponce et al., ICLR 2026, https://arxiv.org/abs/2507.01028.
"""

import math

import torch
from torch import Tensor

from duality_ssl.functional.linear_dynamics import Flow, Problem, State


def collapse_bound(encoder: Tensor, weight_decay: float, time: float) -> Tensor:
    r"""Bound of lemma 4.3 on the gradient flow: :math:`\|A(t)\|_F^2 \le \|A(0)\|_F^2\, e^{-2λt}`.

    The error is quadratic in A, so :math:`\langle A, \partial E/\partial A \rangle \ge λ\|A\|_F^2`.

    Returns:
        Shape ``(...)``, for the encoder A(0) of shape ``(..., n, m)``.
    """
    return encoder.square().sum(dim=(-2, -1)) * math.exp(-2 * weight_decay * time)


def jacobian(flow: Flow, state: State, problem: Problem) -> Tensor:
    """Derivative of a flow by its state, the entries of ``(A, B)`` or ``(A, B, C)`` in a row.

    Symmetric everywhere if and only if the flow is the gradient of a function. Stop-gradient's and
    EMA's are not (proposition 3.2): :func:`asymmetry` is not zero.

    Returns:
        Shape ``(k, k)``, ``k = n m + n²`` or ``2 n m + n²``. The state must have no batch.
    """

    def flat_flow(entries: Tensor) -> Tensor:
        parts = entries.split([part.numel() for part in state])
        shaped = (part.view(like.shape) for part, like in zip(parts, state, strict=True))
        return torch.cat([part.flatten() for part in flow(*shaped, problem)])

    entries = torch.cat([part.flatten() for part in state])
    return torch.autograd.functional.jacobian(flat_flow, entries)


def asymmetry(flow: Flow, state: State, problem: Problem) -> Tensor:
    r""":math:`\|J - J^\top\|_F` of the :func:`jacobian`: zero for the gradient of any function."""
    matrix = jacobian(flow, state, problem)
    return torch.linalg.norm(matrix - matrix.T)


def growth_rates(flow: Flow, state: State, problem: Problem) -> Tensor:
    """Real parts of the Jacobian's eigenvalues, descending: how fast small disturbances grow.

    At a stable equilibrium none is positive, and zero ones go along the orbit of equilibria.
    """
    return torch.linalg.eigvals(jacobian(flow, state, problem)).real.sort(descending=True).values


def balance(encoder: Tensor, predictor: Tensor) -> Tensor:
    r""":math:`B^\top B - A A^\top`, shape ``(..., n, n)``.

    Under stop-gradient and EMA it decays as :math:`e^{-2λt}` whatever the target: it is zero at
    every equilibrium.
    """
    return predictor.mT @ predictor - encoder @ encoder.mT


def equilibrium_residual(encoder: Tensor, problem: Problem) -> Tensor:
    r""":math:`(X S + λI)(S X + λI) - Y^\top S Y` with :math:`S = A^\top A`, shape ``(..., m, m)``.

    Zero if and only if an encoder of rank m is at an equilibrium of stop-gradient, hence of EMA,
    with :func:`equilibrium_predictor` (proposition 4.5). So the equilibria are orbits
    :math:`U \sqrt{S}` of rotations U. ``A = 0`` is an equilibrium of rank 0, where this is λ²I.
    """
    s, x, y = encoder.mT @ encoder, problem.xx, problem.yx
    decay = problem.weight_decay * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return (x @ s + decay) @ (s @ x + decay) - y.mT @ s @ y


def equilibrium_predictor(encoder: Tensor, problem: Problem) -> Tensor:
    r""":math:`B = A Y A^\top (A X A^\top + λI)^{-1}`, where B is at rest (proposition 4.5)."""
    n = encoder.shape[-2]
    decay = problem.weight_decay * torch.eye(n, dtype=encoder.dtype, device=encoder.device)
    covariance = encoder @ problem.xx @ encoder.mT + decay
    return torch.linalg.solve(covariance, encoder @ problem.yx @ encoder.mT, left=False)


def equilibrium_radii(problem: Problem) -> tuple[Tensor, Tensor]:
    r"""Norms of A at the equilibria of ``m = 1`` (proposition 4.11): a saddle and a stable sphere.

    .. math:: \|A\| = \frac{|Y| \mp \sqrt{Δ}}{2X}, \qquad Δ = Y^2 - 4 X λ.

    Returns:
        The inner and the outer radius, shape ``(...)``; NaN where Δ < 0 and only ``A = 0`` is left.

    Raises:
        ValueError: If m is not 1.
    """
    if (m := problem.xx.shape[-1]) != 1:
        raise ValueError(f"Expected moments of inputs of dimension m=1, but got m={m}.")
    root = (problem.yx**2 - 4 * problem.xx * problem.weight_decay).sqrt()
    inner, outer = ((problem.yx.abs() + s * root) / (2 * problem.xx) for s in (-1, 1))
    return inner[..., 0, 0], outer[..., 0, 0]


def nearest_equilibrium(encoder: Tensor, problem: Problem) -> Tensor:
    """Name the equilibrium of ``m = 1`` whose norm is nearest to the encoder's.

    Returns:
        Shape ``(...)``: 0 for the origin, 1 for the saddle, 2 for the outer sphere, and -1 where
        the encoder is not finite.

    Example:
        >>> problem = Problem(*torch.tensor([1.0, 0.9, 1.0]).view(3, 1, 1), weight_decay=0.05)
        >>> equilibrium_radii(problem)
        (tensor(0.0595), tensor(0.8405))
        >>> nearest_equilibrium(torch.tensor([0.01, 0.1, 0.8]).view(3, 1, 1), problem)
        tensor([0, 1, 2])
    """
    norm = encoder.square().sum(dim=(-2, -1)).sqrt()
    radii = torch.broadcast_tensors(torch.zeros_like(norm), *equilibrium_radii(problem))
    nearest = (torch.stack(radii) - norm).abs().nan_to_num(torch.inf).argmin(dim=0)
    return nearest.where(norm.isfinite(), -1)
