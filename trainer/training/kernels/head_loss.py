"""The loss without the table of all logits: hidden states go through the output layer a piece at a time.

For each piece the gradient is taken at once, since a frozen output layer passes on nothing else. So no (tokens,
vocabulary) tensor outlives its piece, and none is read twice. As in Liger's and Apple's fused cross-entropy, in plain
torch.
"""

from typing import Any

import torch
from torch import Tensor

PIECE = 256  # tokens


class HeadLoss:
    """Cross-entropy of a model whose output layer is frozen. Meanwhile the model's `logits` are hidden states."""

    def __init__(self, model: Any) -> None:
        self.head = model.get_output_embeddings()
        self.head.forward = lambda hidden: hidden

    def __call__(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Summed over targets, in nats; hidden (places, width), targets (places,) with -100 where there is no loss."""
        hidden = hidden.to(self.head.weight.dtype)  # as autocast would
        loss: Tensor = _Pieces.apply(hidden, self.head.weight, targets)  # type: ignore[no-untyped-call]
        return loss

    def remove(self) -> None:
        """Let the model give logits again."""
        del self.head.forward


class _Pieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        wants_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wants_gradient else hidden[:0]
        for start in range(0, len(targets), PIECE):
            piece = slice(start, start + PIECE)
            counts = targets[piece] != -100
            rows = torch.arange(int(counts.shape[0]), device=hidden.device)
            wanted = targets[piece].clamp(min=0)
            logits = (hidden[piece] @ weight.t()).float()  # (piece, vocab)
            logits -= logits.amax(dim=1, keepdim=True)
            of_wanted = logits[rows, wanted]
            logits.exp_()
            sums = logits.sum(dim=1)
            total += ((sums.log() - of_wanted) * counts).sum()
            if not wants_gradient:
                continue
            logits /= sums[:, None]  # now probabilities, and with the next line the gradient
            logits[rows, wanted] -= 1
            logits *= counts[:, None]
            gradient[piece] = logits.to(hidden.dtype) @ weight
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.saved_tensors[0] * gradients[0], None, None  # a number: the product keeps its 16 bits


def install(model: Any) -> HeadLoss | None:
    """Use it for a model, where that gives the same loss: not where the output layer is trained, or logits rescaled."""
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.bias is not None or head.weight.requires_grad:
        return None
    return HeadLoss(model) if _leaves_logits(model, head) else None


def _leaves_logits(model: Any, head: Any) -> bool:
    """Whether what the output layer gives is what the model gives.

    The layer gives large numbers for once: a cap of 300, say, changes those that this text would have by too little
    to be seen. A factor before the layer is in what it gets, and so does no harm.
    """
    ids = torch.arange(3, 15, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
    places, count = ids.shape[1], head.weight.shape[0]
    given = torch.linspace(-2000, 2000, places * count, device=model.device).view(1, places, count)
    was_training = model.training
    model.eval()
    head.forward = lambda hidden: given.to(hidden.dtype)
    try:
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits
    finally:
        del head.forward
        model.train(was_training)
    return logits.shape == given.shape and bool(torch.equal(logits.float(), given.to(logits.dtype).float()))
