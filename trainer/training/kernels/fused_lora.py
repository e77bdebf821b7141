"""LoRA layers that compute beside a 16-bit linear layer in its own number format, as one autograd step.

PEFT's layer casts its input to the adapter's float32 and back, multiplies and adds in separate passes, and keeps each
of them for the backward pass. Here the adapter's weights, which stay float32 for the optimizer, are cast (they are
small), the products go straight into the result, and only the input and its r-wide projection are kept.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor


class _LoraLinear(torch.autograd.Function):
    """y = x W^T + bias + scaling (x A^T) B^T, with gradients of x, A and B; W and bias are frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        # x (…, in), weight (out, in), a (r, in) and b (out, r) in float32
        flat = x.reshape(-1, x.shape[-1])
        a_cast, b_cast = a.to(x.dtype), b.to(x.dtype)
        hidden = flat @ a_cast.t()  # (tokens, r)
        y = torch.nn.functional.linear(flat, weight, bias)
        y.addmm_(hidden, b_cast.t(), alpha=scaling)
        ctx.save_for_backward(flat, hidden, weight, a_cast, b_cast)
        ctx.scaling, ctx.formats = scaling, (a.dtype, b.dtype)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        flat, hidden, weight, a, b = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, gradients[0].shape[-1])  # (tokens, out)
        of_hidden = (gradient @ b).mul_(ctx.scaling)  # (tokens, r)
        of_a = (of_hidden.t() @ flat).to(ctx.formats[0])
        of_b = (gradient.t() @ hidden).to(ctx.formats[1]).mul_(ctx.scaling)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (gradient @ weight).addmm_(of_hidden, a).view(*gradients[0].shape[:-1], -1)
        return of_x, None, None, of_a, of_b, None


def fuse(model: Any) -> int:
    """Let those LoRA layers of a PEFT model compute so that can; returns their number.

    Left as they are: DoRA, dropout, quantised layers and float32 ones, where nothing is cast.
    """
    from peft.tuners.lora import Linear

    fused = 0
    for module in model.modules():
        if type(module) is Linear and _can(module):
            module.forward = MethodType(_forward, module)
            fused += 1
    return fused


def _can(layer: Any) -> bool:
    name = layer.active_adapters[0]
    base = layer.get_base_layer()
    return (
        len(layer.active_adapters) == 1
        and type(base) is torch.nn.Linear
        and base.weight.dtype == torch.bfloat16
        and not base.weight.requires_grad
        and isinstance(layer.lora_dropout[name], torch.nn.Identity)
        and not layer.use_dora.get(name, False)
        and not getattr(layer, "fan_in_fan_out", False)
        and layer.lora_A[name].bias is None
        and layer.lora_B[name].bias is None
    )


def _forward(self: Any, x: Tensor) -> Any:
    name = self.active_adapters[0]
    base = self.base_layer
    if self.disable_adapters or self.merged:
        return base(x)
    a, b = self.lora_A[name].weight, self.lora_B[name].weight
    return _LoraLinear.apply(x, base.weight, base.bias, a, b, self.scaling[name])  # type: ignore[no-untyped-call]
