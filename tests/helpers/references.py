"""The criteria again, from their formulas, as plain loops over float64 numbers.

Nothing here is vectorised over samples or dimensions, shared with the package or meant to be fast.
The embeddings are NumPy arrays or, for a gradient by autograd, tensors.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = Any  # NDArray[np.float64] or Tensor; what is computed of it is called a float below


def grid(n: int, d: int, s: int = 1) -> Tensor:
    """A matrix that draws nothing at random, the same in every library."""
    k = torch.arange(1, n * d + 1, dtype=torch.float64)
    return (s * k * k).sin().reshape(n, d)


def like(rows: Tensor, z: Array) -> Array:
    """Rows in the form of the embeddings, an array or a tensor."""
    return rows if isinstance(z, Tensor) else rows.numpy()


def exp(value: Any) -> Any:
    return value.exp() if isinstance(value, Tensor) else math.exp(value)


def log(value: Any) -> Any:
    return value.log() if isinstance(value, Tensor) else math.log(value)


def sqrt(value: Any) -> Any:
    return value.sqrt() if isinstance(value, Tensor) else math.sqrt(value)


def matrix(rows: Sequence[Any]) -> Array:
    """Rows of numbers, or rows that are vectors already."""
    if isinstance(rows[0], Tensor):
        return torch.stack(list(rows))
    if isinstance(rows[0][0], Tensor):
        return torch.stack([torch.stack(list(row)) for row in rows])
    return np.array(rows)


def logsumexp(values: list[float]) -> float:
    top = max(value.item() if isinstance(value, Tensor) else value for value in values)
    return top + log(sum(exp(value - top) for value in values))


def sample_contrastive(z: Array) -> float:
    n = len(z)
    return sum((z[i] @ z[j]) ** 2 for i in range(n) for j in range(n) if i != j)


def dimension_contrastive(z: Array) -> float:
    d = z.shape[1]
    return sum((z[:, i] @ z[:, j]) ** 2 for i in range(d) for j in range(d) if i != j)


def row_fourth_norms(z: Array) -> float:
    return sum((row @ row) ** 2 for row in z)


def column_fourth_norms(z: Array) -> float:
    return sum((column @ column) ** 2 for column in z.T)


def coding_rate(z: Array, distortion: float) -> float:
    n, d = z.shape
    if isinstance(z, Tensor):  # a gradient of eigenvalues is none where two of them are equal
        return (torch.eye(d).to(z) + d / (n * distortion) * z.T @ z).logdet() / 2
    eigenvalues = np.linalg.eigvalsh(z.T @ z)
    return sum(math.log1p(d / (n * distortion) * max(0.0, value)) for value in eigenvalues) / 2


def rankme(z: Array, eps: float = 1e-7) -> float:
    values = np.linalg.svd(z, compute_uv=False)
    shares = [value / values.sum() + eps for value in values]
    return math.exp(-sum(p * math.log(p) for p in shares))


def entropy_rank(values: Sequence[float], eps: float = 1e-7) -> float:
    shares = [value / sum(values) + eps for value in values]
    return math.exp(-sum(p * math.log(p) for p in shares))


def lidar(views: Array, delta: float = 1e-4) -> float:
    """Thilak et al., one image and one view at a time, with the inverse root of the scatter."""
    n, q, d = views.shape
    means = [sum(image) / q for image in views]
    mean = sum(means) / n
    between = sum(np.outer(m - mean, m - mean) for m in means) / (n - 1)
    within = delta * np.eye(d)
    for i in range(n):
        for view in views[i]:
            within += np.outer(view - means[i], view - means[i]) / (n * (q - 1))
    values, vectors = np.linalg.eigh(within)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    eigenvalues = np.linalg.eigvalsh(root @ between @ root).clip(0)
    return entropy_rank(sorted(eigenvalues, reverse=True)[: min(n, d)])


def alpha_req(z: Array) -> float:
    """Agrawal et al.: numpy's least squares line through the logarithms."""
    n, d = z.shape
    eigenvalues = sorted(np.linalg.eigvalsh(np.cov(z.T)), reverse=True)
    last = min(n - 1, d)
    ranks = range(11, 101) if last >= 100 else range(-(-last // 10), last + 1)
    logs = [[math.log(k), math.log(eigenvalues[k - 1])] for k in ranks]
    return -float(np.polyfit(*np.transpose(logs), 1)[0])


def alignment(z1: Array, z2: Array) -> float:
    pairs = zip(unit_rows(z1), unit_rows(z2), strict=True)
    return sum((u - v) @ (u - v) for u, v in pairs) / len(z1)


def uniformity(z: Array, t: float = 2.0) -> float:
    u, n = unit_rows(z), len(z)
    potentials = [
        exp(-t * ((u[i] - u[j]) @ (u[i] - u[j]))) for i in range(n) for j in range(n) if i != j
    ]
    return log(sum(potentials) / (n * (n - 1)))


def linear_cka(x: Array, y: Array) -> float:
    """By the centred N x N Gram matrices."""
    n = len(x)
    centring = np.eye(n) - 1 / n
    if isinstance(x, Tensor):
        centring = torch.from_numpy(centring)
    a, b = centring @ x @ x.T @ centring, centring @ y @ y.T @ centring
    return (a * b).sum() / sqrt((a * a).sum() * (b * b).sum())


def rsa(x: Array, y: Array) -> float:
    """The correlation of cosine distances, one pair of rows after the other."""
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    a, b = ([1 - u[i] @ u[j] for i, j in pairs] for u in (unit_rows(x), unit_rows(y)))
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    products = sum((s - mean_a) * (t - mean_b) for s, t in zip(a, b, strict=True))
    squares = sum((s - mean_a) ** 2 for s in a) * sum((t - mean_b) ** 2 for t in b)
    return products / sqrt(squares)


def diagonal_dominance(matrix: Array) -> float:
    rows = range(len(matrix))
    return sum(abs(matrix[i, i]) / sum(abs(matrix[i, j]) for j in rows) for i in rows) / len(rows)


def geometry(z: Array) -> dict[str, float]:
    """Supplements D, E and G, one pair of rows or columns at a time."""
    n, d = z.shape
    u, v, s = unit_rows(z), unit_rows(z.T).T, standardized_columns(z, 1.0)
    gram = matrix([[a @ b for b in u] for a in u])
    correlation = matrix([[a @ b for b in s.T] for a in s.T])
    cosines = [gram[i, j] for i in range(n) for j in range(n) if i != j]
    mean = sum(cosines) / len(cosines)
    return {
        "cosine_mean": mean,
        "cosine_variance": d * sum((c - mean) ** 2 for c in cosines) / len(cosines),
        "column_fourth_ratio": column_fourth_norms(u) * d / n**2,
        "row_fourth_ratio": row_fourth_norms(v) * n / d**2,
        "gram_dominance": diagonal_dominance(gram),
        "covariance_dominance": diagonal_dominance(correlation),
    }


def variances(z: Array) -> list[float]:
    n, d = z.shape
    means = [sum(z[:, j]) / n for j in range(d)]
    return [sum((z[i, j] - means[j]) ** 2 for i in range(n)) / (n - 1) for j in range(d)]


def covariance(z: Array, i: int, j: int) -> float:
    n = len(z)
    mean_i, mean_j = sum(z[:, i]) / n, sum(z[:, j]) / n
    return sum((z[k, i] - mean_i) * (z[k, j] - mean_j) for k in range(n)) / (n - 1)


def squared_covariance(z: Array) -> float:
    d = z.shape[1]
    return sum(covariance(z, i, j) ** 2 for i in range(d) for j in range(d) if i != j) / d


def covariance_logsumexp(z: Array, temperature: float) -> float:
    d = z.shape[1]
    return (
        sum(
            logsumexp([covariance(z, i, j) / temperature for j in range(d) if j != i])
            for i in range(d)
        )
        / d
    )


def variance_hinge(z: Array) -> float:
    return sum(max(0.0, 1 - sqrt(v + 1e-4)) for v in variances(z)) / z.shape[1]


def mean_squared_error(z1: Array, z2: Array) -> float:
    n, d = z1.shape
    return sum((z1[i, j] - z2[i, j]) ** 2 for i in range(n) for j in range(d)) / (n * d)


def unit_rows(z: Array) -> Array:
    return matrix([row / sqrt(sum(x * x for x in row)) for row in z])


def standardized_columns(z: Array, length: float) -> Array:
    columns = []
    for column in z.T:
        deviations = [x - sum(column) / len(column) for x in column]
        norm = sqrt(sum(x * x for x in deviations))
        columns.append([length * x / norm for x in deviations])
    return matrix(columns).T


def normalized(z: Array, normalization: str) -> Array:
    n, d = z.shape
    if normalization == "embeddings":
        return unit_rows(z)
    if normalization == "centered":
        return unit_rows(matrix([[row[j] - sum(z[:, j]) / n for j in range(d)] for row in z]))
    return standardized_columns(z, math.sqrt(n / d))


def pair_contrast(
    z1: Array,
    z2: Array,
    temperature: float,
    similarity: str,
    normalization: str,
    with_positive: bool,
    with_across: bool = True,
) -> float:
    """NT-Xent and its relatives: one of the 2N samples at a time, one of the others at a time."""
    views = [normalized(z1, normalization), normalized(z2, normalization)]
    n = len(z1)

    def logit(a: Array, b: Array) -> float:
        product = a @ b
        return {"cosine": product, "squared": product**2, "absolute": abs(product)}[
            similarity
        ] / temperature

    loss = 0.0
    for view in (0, 1):
        for i in range(n):
            positive = logit(views[view][i], views[1 - view][i])
            others = [logit(views[view][i], views[view][j]) for j in range(n) if j != i]
            if with_across:
                others += [logit(views[view][i], views[1 - view][j]) for j in range(n) if j != i]
            if with_positive:
                others.append(positive)
            loss += -positive + logsumexp(others)
    return loss / (2 * n)


def simclr(z1: Array, z2: Array, temperature: float, similarity: str, normalization: str) -> float:
    return pair_contrast(z1, z2, temperature, similarity, normalization, with_positive=True)


def dcl(z1: Array, z2: Array, temperature: float, similarity: str, normalization: str) -> float:
    return pair_contrast(z1, z2, temperature, similarity, normalization, with_positive=False)


def spectral_contrastive(z1: Array, z2: Array, mu: float) -> float:
    def shortened(row: Array) -> Array:
        norm = sqrt(sum(x * x for x in row))
        return row * math.sqrt(mu) / norm if norm > math.sqrt(mu) else row

    n = len(z1)
    h1, h2 = [shortened(row) for row in z1], [shortened(row) for row in z2]
    positive = sum(h1[i] @ h2[i] for i in range(n)) / n
    negative = sum((h1[i] @ h2[j]) ** 2 for i in range(n) for j in range(n) if i != j)
    return (-2 * positive + negative / (n * (n - 1))) / mu


def vicreg(z1: Array, z2: Array, invariance: float, variance: float, covariance: float) -> float:
    return (
        invariance * mean_squared_error(z1, z2)
        + variance * (variance_hinge(z1) + variance_hinge(z2)) / 2
        + covariance * (squared_covariance(z1) + squared_covariance(z2))
    )


def vicreg_exp(
    z1: Array,
    z2: Array,
    invariance: float,
    variance: float,
    covariance: float,
    temperature: float,
) -> float:
    repulsion = covariance_logsumexp(z1, temperature) + covariance_logsumexp(z2, temperature)
    return vicreg(z1, z2, invariance, variance, 0) + covariance * repulsion


def vicreg_ctr(
    z1: Array,
    z2: Array,
    invariance: float,
    variance: float,
    covariance: float,
    temperature: float,
) -> float:
    n, d = z1.shape
    loss = invariance * mean_squared_error(z1, z2)
    for z in (z1, z2):
        means = [sum(z[:, j]) / n for j in range(d)]
        rows = [[z[i, j] - means[j] for j in range(d)] for i in range(n)]
        for i in range(n):
            mean = sum(rows[i]) / d
            std = sqrt(sum((x - mean) ** 2 for x in rows[i]) / (d - 1) + 1e-4)
            loss += variance * max(0.0, 1 - std) / (2 * n)
            products = [
                sum(a * b for a, b in zip(rows[i], rows[j], strict=True)) / (d - 1)
                for j in range(n)
                if j != i
            ]
            loss += covariance * logsumexp([p / temperature for p in products]) / n
    return loss


def barlow_twins(z1: Array, z2: Array, redundancy: float, scale: float) -> float:
    n, d = z1.shape
    h1, h2 = standardized_columns(z1, math.sqrt(n)), standardized_columns(z2, math.sqrt(n))
    loss = 0.0
    for i in range(d):
        for j in range(d):
            correlation = sum(h1[k, i] * h2[k, j] for k in range(n)) / n
            loss += (1 - correlation) ** 2 if i == j else redundancy * correlation**2
    return scale * loss


def tcr(z1: Array, z2: Array, invariance: float, distortion: float) -> float:
    h1, h2 = unit_rows(z1), unit_rows(z2)
    cosine = sum(a @ b for a, b in zip(h1, h2, strict=True)) / len(h1)
    rate = (coding_rate(h1, distortion) + coding_rate(h2, distortion)) / 2
    return -rate - invariance * cosine


CONTRASTS = [
    {"similarity": "cosine", "normalization": "embeddings"},
    {"similarity": "cosine", "normalization": "centered"},
    {"similarity": "cosine", "normalization": "standardized"},
    {"similarity": "squared", "normalization": "embeddings"},
    {"similarity": "absolute", "normalization": "standardized"},
]

# Every criterion by its name: the reference and the variants to test, the defaults among them.
CRITERIA: dict[str, tuple[Callable[..., float], list[dict[str, Any]]]] = {
    "SimCLR": (simclr, CONTRASTS),
    "DCL": (dcl, CONTRASTS),
    "SpectralContrastive": (spectral_contrastive, [{}, {"mu": 3.0}]),
    "VICReg": (vicreg, [{}, {"invariance": 1, "variance": 2, "covariance": 3}]),
    "VICRegExp": (vicreg_exp, [{}, {"covariance": 1, "temperature": 0.5}]),
    "VICRegCtr": (vicreg_ctr, [{}, {"covariance": 1, "temperature": 0.5}]),
    "BarlowTwins": (barlow_twins, [{}, {"redundancy": 0.5, "scale": 0.1}]),
    "TCR": (tcr, [{}, {"invariance": 1, "distortion": 0.5}]),
}
