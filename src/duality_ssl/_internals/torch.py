"""Private names of PyTorch."""

# The arithmetic of torch.optim on lists of tensors, one kernel for many on a GPU; without it LARS
# and the norms of gradients would take a kernel a tensor.
from torch import _foreach_add_ as foreach_add_
from torch import _foreach_addcmul_ as foreach_addcmul_
from torch import _foreach_mul_ as foreach_mul_
from torch import _foreach_norm as foreach_norm

__all__ = ["foreach_add_", "foreach_addcmul_", "foreach_mul_", "foreach_norm"]
