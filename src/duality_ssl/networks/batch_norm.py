"""Batch norm over all processes where PyTorch has none: on a CPU, and with timm's activation."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from duality_ssl.distributed import process_group

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def synchronize_batch_norm(module: nn.Module, device: torch.device) -> None:
    """Replace the batch norms that a Trainer's ``sync_batchnorm`` would break.

    Lightning replaces each batch norm by ``torch.nn.SyncBatchNorm``, which takes no CPU tensors and
    drops the activation of timm's ``BatchNormAct2d``. This function replaces timm's norms, and for
    a training on a CPU all norms, by `SyncBatchNorm` first, with the same parameters and names.

    Raises:
        ValueError: If a batch norm is neither PyTorch's nor timm's: a part of it would be lost.
    """
    from timm.layers import BatchNormAct2d, SyncBatchNormAct

    for name, child in module.named_children():
        if not isinstance(child, _PLAIN):
            synchronize_batch_norm(child, device)
        elif type(child) not in (*_PLAIN, BatchNormAct2d, SyncBatchNormAct):
            raise ValueError(
                "Expected `sync_batchnorm` for batch norms of PyTorch and timm, but the backbone "
                f"has {type(child).__name__}, of which a part might be lost. Take another backbone "
                "or set --trainer.sync_batchnorm false."
            )
        elif type(child) not in _PLAIN or device.type == "cpu":
            setattr(module, name, SyncBatchNorm(child))


class SyncBatchNorm(nn.Module):
    r"""Batch norm with the mean and variance of all processes' rows, exactly differentiable.

    .. math:: \mu = \tfrac{1}{W} \sum_w \mu_w, \qquad
        \sigma^2 = \tfrac{1}{W} \sum_w \sigma_w^2 + \tfrac{1}{W} \sum_w (\mu_w - \mu)^2

    for W processes with equally many rows; then ``drop`` and ``act`` of timm's norms. It takes over
    the parameters and buffers of ``norm``. Lightning leaves it as it is, since it is not a subclass
    of PyTorch's batch norms.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.eps: float = norm.eps  # type: ignore[assignment]
        self.momentum: float | None = norm.momentum  # type: ignore[assignment]
        for name in ("weight", "bias"):
            self.register_parameter(name, getattr(norm, name))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        self.drop: nn.Module = getattr(norm, "drop", nn.Identity())
        self.act: nn.Module = getattr(norm, "act", nn.Identity())
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(N, C, ...)``; in evaluation each process by itself."""
        out: Tensor = self.act(self.drop(self._normalize(x)))
        return out

    def _normalize(self, x: Tensor) -> Tensor:
        if not self.training:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(x, mean, var, self.weight, self.bias, mean is None, eps=self.eps)
        full = x if x.dtype == torch.float64 else x.float()
        across = [0, *range(2, x.ndim)]
        own = torch.stack(torch.var_mean(full, across, correction=0))
        everyone = process_group()
        variances, means = everyone.gather(own[None]).unbind(1)  # (W, C) each
        mean = means.mean(0)
        variance = variances.mean(0) + means.var(0, correction=0)
        self._track(mean.detach(), variance.detach(), everyone.world_size * x.numel() // x.shape[1])
        shape = (1, -1, *(1 for _ in across[1:]))
        out = (full - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None and self.bias is not None:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(x.dtype)

    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Update the running statistics, as ``torch.nn.BatchNorm2d`` does."""
        batches = self.num_batches_tracked
        if self.running_mean is None or self.running_var is None or batches is None:
            return
        batches += 1  # in place: it is the buffer
        weight = 1.0 / batches.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), weight)
        self.running_var.lerp_((variance * count / max(1, count - 1)).to(self.running_var), weight)
