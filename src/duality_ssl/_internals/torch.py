"""Private names of PyTorch."""

# The arithmetic of torch.optim on lists of tensors, one kernel for many on a GPU; without it LARS
# and the norms of gradients would take a kernel a tensor.
from torch import _foreach_add_ as foreach_add_
from torch import _foreach_addcmul_ as foreach_addcmul_
from torch import _foreach_mul_ as foreach_mul_
from torch import _foreach_norm as foreach_norm

# Whether `torch.func` wraps the tensors (vmap, grad, jacrev, ...), for which our kernels have no
# rule: without it they fail there, instead of giving way to the formula.
from torch._C import _are_functorch_transforms_active as are_transforms_active

__all__ = [
    "are_transforms_active",
    "foreach_add_",
    "foreach_addcmul_",
    "foreach_mul_",
    "foreach_norm",
]
