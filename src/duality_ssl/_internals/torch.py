"""Private names of PyTorch."""

# The base classes of torch's batch norms, which `synchronize_batch_norm` looks for.
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.batchnorm import _NormBase as NormBase

__all__ = ["BatchNorm", "NormBase"]
