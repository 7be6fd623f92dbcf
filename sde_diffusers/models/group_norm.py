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
        if x.device.type != "cpu" or x.dtype not in (torch.bfloat16, torch.float16):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        weight, bias = self.weight.float(), self.bias.float()
        if torch.compiler.is_compiling() or not x.is_contiguous(memory_format=torch.channels_last):
            return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)
        return HalfGroupNorm.apply(x, weight, bias, self.num_groups, self.eps)


class HalfGroupNorm(torch.autograd.Function):
    """Group norm of half-precision images (N, C, H, W) in channels_last on a CPU, some images at a time in float32.

    PyTorch's kernels for half precision are many times slower there than those for float32: backward, and for few
    pixels forward, too. A cast of all images at once goes through the main memory, and would be kept for backward.
    """

    NUMBERS = 2**19  # of one piece: few enough for a core's cache, enough for threads to share
    PIXELS = 1024  # from here on PyTorch's forward kernel for half precision is the fast one

    @staticmethod
    def forward(ctx, x, weight, bias, num_groups, eps):
        channels, pixels = x.shape[1], x[0, 0].numel()
        size = max(1, HalfGroupNorm.NUMBERS // (channels * pixels))
        if pixels >= HalfGroupNorm.PIXELS:
            y, mean, rstd = torch.native_group_norm(x, weight, bias, len(x), channels, pixels, num_groups, eps)
        else:
            y = torch.empty_like(x)
            mean, rstd = weight.new_empty(2, len(x), num_groups)
            for part, *answer in zip(*(tensor.split(size) for tensor in (x, y, mean, rstd)), strict=True):
                values = torch.native_group_norm(
                    part.float(), weight, bias, len(part), channels, pixels, num_groups, eps
                )
                for tensor, value in zip(answer, values, strict=True):
                    tensor.copy_(value)
        ctx.save_for_backward(x, mean, rstd, weight)
        ctx.sizes = channels, pixels, num_groups, size
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        x, mean, rstd, weight = ctx.saved_tensors
        channels, pixels, num_groups, size = ctx.sizes
        grad_x, grad_weight, grad_bias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
        parts = zip(*(tensor.split(size) for tensor in (grad_x, grad_y, x, mean, rstd)), strict=True)
        for answer, grad, part, m, r in parts:
            by_input, by_weight, by_bias = torch.ops.aten.native_group_norm_backward(
                grad.float(), part.float(), m, r, weight, len(part), channels, pixels, num_groups, [True] * 3
            )
            answer.copy_(by_input)
            grad_weight += by_weight
            grad_bias += by_bias
        return grad_x, grad_weight, grad_bias, None, None
