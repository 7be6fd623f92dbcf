"""Group normalisation, and how it is computed in half precision on CPUs."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable


class GroupNorm(nn.GroupNorm):
    """Group normalisation; by default with the paper's min(channels // 4, 32) groups, fewer where that is uneven."""

    def __init__(self, channels, num_groups=None):
        if num_groups is None:
            num_groups = next(n for n in range(max(min(channels // 4, 32), 1), 0, -1) if channels % n == 0)
        super().__init__(num_groups, channels, eps=1e-6)

    def forward(self, x):
        if x.dtype not in (torch.bfloat16, torch.float16):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        if x.device.type != "cpu":
            # Autocast would have a GPU write it, and SiLU after it, in float32, for the next layer to cast back; the
            # kernel sums in float32 anyway.
            with torch.autocast(x.device.type, enabled=False):
                return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        weight, bias = self.weight.float(), self.bias.float()
        if torch.compiler.is_compiling() or not x.is_contiguous(memory_format=torch.channels_last):
            return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)
        return HalfGroupNorm.apply(x, weight, bias, self.num_groups, self.eps)


class HalfGroupNorm(torch.autograd.Function):
    """Group norm of half-precision images (N, C, H, W) in channels_last on a CPU, by kernels for float32.

    PyTorch's kernels for half precision are many times slower there: backward, and for few pixels forward, too. The
    images are cast a few at a time when gradients are asked for, not kept in float32 and not sent through the main
    memory as such. There is no second derivative, and none in forward mode.
    """

    NUMBERS = 2**19  # of one piece: few enough for the processor's caches, enough for its cores to share
    PIXELS = 1024  # from here on PyTorch's forward kernel for half precision is the faster one

    @staticmethod
    def forward(ctx, x, weight, bias, num_groups, eps):
        ctx.sizes = x.shape[1], x.shape[2] * x.shape[3], num_groups
        y = x if ctx.sizes[1] >= HalfGroupNorm.PIXELS else x.float()
        y, mean, rstd = torch.native_group_norm(y, weight, bias, len(x), *ctx.sizes, eps)
        ctx.save_for_backward(x, mean, rstd, weight)
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        x, mean, rstd, weight = ctx.saved_tensors
        size = max(1, HalfGroupNorm.NUMBERS // (ctx.sizes[0] * ctx.sizes[1]))
        grad_x, by_weight, by_bias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
        for i in range(0, len(x), size):
            part = slice(i, i + size)
            images = x[part].float()
            grad_x[part], gamma, beta = torch.ops.aten.native_group_norm_backward(
                grad_y[part].float(), images, mean[part], rstd[part], weight, len(images), *ctx.sizes, [True] * 3
            )
            by_weight += gamma
            by_bias += beta
        return grad_x, by_weight, by_bias, None, None
