"""Private names of PyTorch."""

# Whether `torch.func` wraps the tensors (vmap, grad, jacrev, ...), for which our kernels have no
# rule: without it they fail there, instead of giving way to the formula.
from torch._C import _are_functorch_transforms_active as are_transforms_active

# The base classes of torch's batch norms, which `synchronize_batch_norm` looks for.
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.batchnorm import _NormBase as NormBase

__all__ = ["BatchNorm", "NormBase", "are_transforms_active"]
