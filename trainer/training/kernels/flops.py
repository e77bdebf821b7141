"""How much arithmetic a training step needs, and how much of it this machine does when nothing is in the way."""

import time
from typing import Any, NamedTuple


class Cost(NamedTuple):
    """Floating-point operations of forward and backward pass together."""

    per_token: float  # the layers' matrix products
    per_loss_token: float  # the output layer's, which only tokens that bear loss go through
    per_pair: float  # attention's, for each pair of a token and one that it may see

    def of(self, tokens: int, loss_tokens: int, pairs: int) -> float:
        """Of a batch."""
        return self.per_token * tokens + self.per_loss_token * loss_tokens + self.per_pair * pairs


def cost_of(model: Any) -> Cost:
    """By the usual count: 2 for each weight and token forward, 2 backward to the input, 2 more where it is trained.

    As in PaLM's appendix B, but with frozen weights not counted as trained. Embeddings, norms and what is computed
    a second time (gradient checkpointing) count nothing.
    """
    from torch.nn import Linear

    head = model.get_output_embeddings()
    layers = 0.0
    of_head = 0.0
    for module in model.modules():
        # bitsandbytes' layers are Linear too, and pack two weights in a byte
        if isinstance(module, Linear):
            cost = module.in_features * module.out_features * (6 if module.weight.requires_grad else 4)
            if module is head:
                of_head += cost
            else:
                layers += cost
    heads = _number(model, "num_attention_heads")
    size = _number(model, "head_dim") or _number(model, "hidden_size") // max(1, heads)
    return Cost(layers, of_head, 2 * 2 * 3 * heads * size * _number(model, "num_hidden_layers"))


def _number(model: Any, name: str) -> int:
    """A number of the configuration; 0 where it has none, or one for each layer."""
    try:
        value = getattr(model.config.get_text_config(), name, 0)
    except Exception:  # an attribute that differs from layer to layer raises what it likes
        return 0
    return value if isinstance(value, int) else 0


def matmul_flops(model: Any, dtype: Any) -> float:
    """Floating-point operations per second of a matrix product in the shape of this model's layers."""
    import torch

    tokens, seconds = 1024, 0.3
    width = _number(model, "hidden_size") or 1024
    inner = _number(model, "intermediate_size") or 4 * width
    a = torch.ones((tokens, width), dtype=dtype, device=model.device)
    b = torch.ones((width, inner), dtype=dtype, device=model.device)

    def wait() -> None:
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    a @ b
    wait()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        for _ in range(8):
            a @ b
        wait()
        count += 8
    return 2.0 * tokens * width * inner * count / (time.perf_counter() - began)
