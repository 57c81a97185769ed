"""Coding rate: how many nats the embeddings take at a given precision."""

import torch
from torch import Tensor

from duality_ssl.distributed import SINGLE, Group
from duality_ssl.functional.gram import dimension_gram, sample_gram
from duality_ssl.functional.precision import full_precision


@full_precision
def coding_rate(z: Tensor, distortion: float, group: Group = SINGLE) -> Tensor:
    r"""Coding rate :math:`R(z) = \frac12 \log\det(I + \frac{D}{N \epsilon^2} z^\top z)`, in nats.

    NaN where rounding makes the determinant negative. Unit rows are always safe; where eigenvalues
    of the second summand exceed the dtype's ``1 / eps`` the 1 is lost beside them.

    Args:
        z: Embeddings ``(n, D)``, neither centred nor scaled here; TCR gives them unit rows.
        distortion: :math:`\epsilon^2`, positive.
        group: Processes that share the products; each computes the determinant.

    Reference: Yu et al., *Learning Diverse and Discriminative Representations via the Principle of
    Maximal Coding Rate Reduction*, NeurIPS 2020, section 2.1, https://arxiv.org/abs/2006.08558

    Example:
        >>> coding_rate(torch.eye(2), distortion=1.0)  # log det(2 I) / 2
        tensor(0.6931)
    """
    n, d = group.world_size * len(z), z.shape[1]
    gram = group.gather(sample_gram(z, group)) if n <= d else dimension_gram(z, group)
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.logdet(identity + d / (n * distortion) * gram) / 2
