"""Private names of PyTorch."""

import torch

# The arithmetic of torch.optim on lists of tensors, one kernel for many on a GPU; without it LARS,
# the norms of gradients and the teacher would take a kernel a tensor.
foreach_add_ = torch._foreach_add_
foreach_addcmul_ = torch._foreach_addcmul_
foreach_lerp_ = torch._foreach_lerp_
foreach_mul_ = torch._foreach_mul_
foreach_norm = torch._foreach_norm

# Whether `torch.func` wraps the tensors (vmap, grad, jacrev, ...), for which our kernels have no
# rule: without it they fail there, instead of giving way to the formula.
are_transforms_active = torch._C._are_functorch_transforms_active
