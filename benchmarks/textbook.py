"""The criteria as their authors write them: plain PyTorch, one matrix, autograd does the rest.

Each takes two views of shape ``(N, D)`` and returns the loss with the defaults, the conventions and
the scale of ``duality_ssl.criteria``; the authors' code is named where it is theirs.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def off_diagonal(matrix: Tensor) -> Tensor:
    """View the elements off the diagonal of a square matrix, as VICReg's and Barlow Twins' code."""
    n = len(matrix)
    return matrix.flatten()[:-1].view(n - 1, n + 1)[:, 1:].flatten()


def vicreg(z1: Tensor, z2: Tensor) -> Tensor:
    """Return VICReg, https://github.com/facebookresearch/vicreg (main_vicreg.py)."""
    return _variance_invariance_covariance(z1, z2, 1.0, _squared_covariance)


def vicreg_exp(z1: Tensor, z2: Tensor, weight: float = 2.5, temperature: float = 0.1) -> Tensor:
    """Return VICReg with the log-sum-exp of each dimension's covariances with the others."""
    return _variance_invariance_covariance(
        z1, z2, weight, lambda z: _offdiagonal_logsumexp(_covariance(z) / temperature).mean()
    )


def vicreg_ctr(z1: Tensor, z2: Tensor, weight: float = 3.75, temperature: float = 0.15) -> Tensor:
    """Return VICReg-exp of the transposes of the centred embeddings, which stay as they are."""
    centred = [z - z.mean(dim=0) for z in (z1, z2)]
    hinges = [torch.relu(1 - torch.sqrt(z.var(dim=1) + 1e-4)).mean() for z in centred]
    grams = [z @ z.T / ((z.shape[1] - 1) * temperature) for z in centred]
    contrast = sum(_offdiagonal_logsumexp(gram).mean() for gram in grams)
    return 25 * F.mse_loss(z1, z2) + 25 * sum(hinges) / 2 + weight * contrast


def _variance_invariance_covariance(
    z1: Tensor, z2: Tensor, weight: float, penalty: Callable[[Tensor], Tensor]
) -> Tensor:
    hinges = [torch.relu(1 - torch.sqrt(z.var(dim=0) + 1e-4)).mean() for z in (z1, z2)]
    covariance = penalty(z1) + penalty(z2)
    return 25 * F.mse_loss(z1, z2) + 25 * sum(hinges) / 2 + weight * covariance


def _covariance(z: Tensor) -> Tensor:
    z = z - z.mean(dim=0)
    return (z.T @ z) / (len(z) - 1)


def _squared_covariance(z: Tensor) -> Tensor:
    return off_diagonal(_covariance(z)).pow_(2).sum().div(z.shape[1])


def _offdiagonal_logsumexp(logits: Tensor) -> Tensor:
    mask = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    return torch.logsumexp(logits.masked_fill(mask, -torch.inf), dim=1)


def barlow_twins(z1: Tensor, z2: Tensor) -> Tensor:
    """Return Barlow Twins, https://github.com/facebookresearch/barlowtwins (main.py), eps 1e-12."""
    h1, h2 = (F.batch_norm(z, None, None, training=True, eps=1e-12) for z in (z1, z2))
    c = (h1.T @ h2).div_(len(z1))
    on = torch.diagonal(c).add_(-1).pow_(2).sum()
    return on + 0.005 * off_diagonal(c).pow_(2).sum()


def tcr(z1: Tensor, z2: Tensor) -> Tensor:
    """Return TCR, https://github.com/tsb0601/EMP-SSL (loss.py), with the sign of its paper."""
    h1, h2 = F.normalize(z1), F.normalize(z2)
    n, d = h1.shape
    identity = torch.eye(d, device=h1.device, dtype=h1.dtype)
    rates = [torch.logdet(identity + d / (n * 0.2) * h.T @ h) / 2 for h in (h1, h2)]
    return -sum(rates) / 2 - 100 * F.cosine_similarity(z1, z2).mean()


def vibcreg(z1: Tensor, z2: Tensor) -> Tensor:
    """Return VIbCReg, https://github.com/ML4ITS/vibcreg (losses.py)."""
    hinges = [torch.relu(1 - torch.sqrt(z.var(dim=0) + 1e-4)).mean() for z in (z1, z2)]
    correlations = [F.normalize(z - z.mean(dim=0), dim=0) for z in (z1, z2)]
    squares = sum(off_diagonal(h.T @ h).square().sum() / h.shape[1] ** 2 for h in correlations)
    return 25 * F.mse_loss(z1, z2) + 25 * sum(hinges) + 200 * squares


def mmcr(z1: Tensor, z2: Tensor) -> Tensor:
    """Return MMCR, https://github.com/ThomasYerxa/mmcr (loss_mmcr.py), by singular values."""
    return -torch.linalg.svdvals((F.normalize(z1) + F.normalize(z2)) / 2).sum()


def frossl(z1: Tensor, z2: Tensor) -> Tensor:
    """Return FroSSL on the side of the dimensions, as in its paper."""
    y1, y2 = F.normalize(z1, dim=0), F.normalize(z2, dim=0)
    covariances = [y.T @ y for y in (y1, y2)]
    norms = sum(2 * torch.log(c.norm() / c.trace()) for c in covariances)
    return norms + (y1 - y2).square().sum() / len(z1)


def spectral_contrastive(z1: Tensor, z2: Tensor) -> Tensor:
    """Return SCL, https://github.com/jhaochenz/spectral_contrastive_learning, its ball included."""
    inside1, inside2 = ((z.norm(dim=1, keepdim=True) < 1).to(z.dtype) for z in (z1, z2))
    h1 = inside1 * z1 + (1 - inside1) * F.normalize(z1)
    h2 = inside2 * z2 + (1 - inside2) * F.normalize(z2)
    n = len(h1)
    squares = (h1 @ h2.T).square() * (1 - torch.eye(n, device=h1.device, dtype=h1.dtype))
    return -2 * (h1 * h2).sum(dim=1).mean() + squares.sum() / (n * (n - 1))


def simclr(
    z1: Tensor, z2: Tensor, similarity: Callable[[Tensor], Tensor] = lambda products: products
) -> Tensor:
    """Return NT-Xent as the cross entropy of the ``2 N x 2 N`` matrix."""
    logits, partner = _all_pairs(z1, z2, similarity, 0.15)
    return F.cross_entropy(logits, partner)


def dcl(
    z1: Tensor, z2: Tensor, similarity: Callable[[Tensor], Tensor] = lambda products: products
) -> Tensor:
    """Return DCL: the log-sum-exp of that matrix without the positives."""
    logits, partner = _all_pairs(z1, z2, similarity, 0.1)
    positives = logits.gather(1, partner[:, None])
    negatives = logits.scatter(1, partner[:, None], -torch.inf)
    return (torch.logsumexp(negatives, dim=1) - positives.squeeze(1)).mean()


def nscl(z1: Tensor, z2: Tensor) -> Tensor:
    """Return NSCL: the log-sum-exp of that matrix without the samples of the class."""
    logits, partner = _all_pairs(z1, z2, lambda products: products, 0.1)
    classes = labels(z1).repeat(2)
    negatives = logits.masked_fill(classes[:, None] == classes, -torch.inf)
    positives = logits.gather(1, partner[:, None])
    return (torch.logsumexp(negatives, dim=1) - positives.squeeze(1)).mean()


def supcon(z1: Tensor, z2: Tensor) -> Tensor:
    """Return SupCon, https://github.com/HobbitLong/SupContrast (losses.py), base = temperature."""
    n = len(z1)
    h = F.normalize(torch.cat([z1, z2]))
    logits = h @ h.T / 0.1
    classes = labels(z1).repeat(2)
    itself = torch.eye(2 * n, dtype=torch.bool, device=h.device)
    positives = ((classes[:, None] == classes) & ~itself).to(h.dtype)
    others = torch.logsumexp(logits.masked_fill(itself, -torch.inf), dim=1, keepdim=True)
    return -((positives * (logits - others)).sum(dim=1) / positives.sum(dim=1)).mean()


def mocov3(z1: Tensor, z2: Tensor) -> Tensor:
    """Return MoCo v3, https://github.com/facebookresearch/moco-v3 (moco/builder.py)."""
    t1, t2 = targets(z1, z2)
    return _contrast_with_keys(z1, t2) + _contrast_with_keys(z2, t1)


def _contrast_with_keys(queries: Tensor, keys: Tensor, temperature: float = 1.0) -> Tensor:
    logits = F.normalize(queries) @ F.normalize(keys).T / temperature
    own = torch.arange(len(queries), device=queries.device)
    return F.cross_entropy(logits, own) * (2 * temperature)


def labels(z: Tensor) -> Tensor:
    """Classes of the rows: as many rows each, of up to 100 classes."""
    n = len(z)
    return torch.arange(n, device=z.device) % min(100, n // 2)


def targets(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
    """Targets of two views: the views themselves, without gradient."""
    return z1.detach(), z2.detach()


def _all_pairs(
    z1: Tensor, z2: Tensor, similarity: Callable[[Tensor], Tensor], temperature: float
) -> tuple[Tensor, Tensor]:
    n = len(z1)
    h = F.normalize(torch.cat([z1, z2]))
    mask = torch.eye(2 * n, dtype=torch.bool, device=h.device)
    logits = (similarity(h @ h.T) / temperature).masked_fill(mask, -torch.inf)
    return logits, torch.arange(2 * n, device=h.device).roll(n)


def simclr_dense(z1: Tensor, z2: Tensor) -> Tensor:
    """Return NT-Xent from three dense ``N x N`` blocks: the fourth is the third's transpose."""
    h1, h2 = (F.normalize(z) / 0.15**0.5 for z in (z1, z2))
    within1, within2, across = h1 @ h1.T, h2 @ h2.T, h1 @ h2.T
    with torch.no_grad():
        within1.fill_diagonal_(-torch.inf)
        within2.fill_diagonal_(-torch.inf)
    rows = torch.logaddexp(within1.logsumexp(1), across.logsumexp(1))
    columns = torch.logaddexp(within2.logsumexp(1), across.logsumexp(0))
    return ((rows + columns) / 2 - across.diagonal()).mean()
