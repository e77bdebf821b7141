"""One batch of sequences that grows a token at a time; sequences join and leave between any two tokens.

The keys and values of all sequences lie in one buffer, each sequence's ending at the same column: what is shorter has
padding to its left, as in `generate`. So a step is one forward pass over the batch, with slices and no copies.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from code_model.healing import Rest

GROWTH = 256  # columns: the buffer's length is a multiple of it


@dataclass(frozen=True)
class Sampling:
    """How the next token of a sequence is chosen, with the meaning that transformers' GenerationConfig gives them."""

    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


class Scored(NamedTuple):
    """A token with its log-likelihood in nats (None: it stands behind nothing), and the likeliest in its place."""

    token: int
    logprob: float | None
    top: list[tuple[int, float]]


@dataclass(eq=False)
class Completion:
    """One sequence: its prompt and what has been added to it, as token ids."""

    prompt: list[int]
    sampling: Sampling = Sampling()
    generator: torch.Generator | None = None  # of its own, so that a seed gives the same whatever runs beside it
    rest: Rest | None = None  # what its next tokens have to spell out
    new: list[int] = field(default_factory=list)
    logprobs: int = -1  # of how many tokens in each place, beside the one that is taken; -1: of none
    echo: bool = False  # the prompt's too
    scored: list[Scored] = field(default_factory=list)

    def score(self, logits: torch.Tensor, token: int) -> None:
        """Note how likely a token was by the logits of its place, (vocabulary,)."""
        found = logits.float().log_softmax(-1)
        values, tokens = found.topk(min(self.logprobs, len(found)))
        top = list(zip(tokens.tolist(), values.tolist(), strict=True))
        self.scored.append(Scored(token, float(found[token]), top))

    def add(self, token: int) -> None:
        """Take in the next token."""
        self.new.append(token)
        if self.rest is not None:
            self.rest = self.rest.after(token)

    @property
    def length(self) -> int:
        """Tokens of which keys and values are kept: all but the last one, which the next step reads."""
        return len(self.prompt) + len(self.new) - 1


class Reading:
    """The prompts of some sequences that are to join a batch: how far they have been read."""

    def __init__(self, sequences: Sequence[Completion], pad: int, device: Any) -> None:
        longest = max(len(sequence.prompt) for sequence in sequences)
        padding = [longest - len(sequence.prompt) for sequence in sequences]
        left = torch.tensor(padding, device=device)[:, None]  # (B, 1)
        columns = torch.arange(longest, device=device)[None]  # (1, T)
        self.sequences = sequences
        self.ids = torch.tensor(
            [[pad] * n + sequence.prompt for n, sequence in zip(padding, sequences, strict=True)], device=device
        )  # (B, T)
        self.real = columns >= left  # (B, T)
        self.positions = (columns - left).clamp(min=0)  # (B, T)
        self.padded = any(padding)
        self.columns, self.done = longest, 0
        self.cache = DynamicCache()

    def score(self, logits: torch.Tensor, start: int) -> None:
        """Note how likely the prompts' tokens were; `logits` of the columns from `start` on, (B, n, vocabulary)."""
        for row, item in enumerate(self.sequences):
            first = self.columns - len(item.prompt)  # the row's first column with a token
            if not item.echo:
                continue
            if start <= first < start + logits.shape[1]:
                item.scored.append(Scored(item.prompt[0], None, []))
            for column in range(max(start, first), min(start + logits.shape[1], self.columns - 1)):
                item.score(logits[row, column - start], item.prompt[column + 1 - first])


class _Layer(DynamicLayer):  # type: ignore[misc]
    """The keys and values of one layer: (rows, heads, columns, size of a head)."""

    def __init__(self, owner: "Decoder") -> None:
        super().__init__()
        self.owner = owner

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        rows, first, end = len(self.owner.sequences), self.owner.first, self.owner.end
        assert self.keys is not None
        assert self.values is not None
        self.keys[:rows, :, end : end + 1] = key_states  # (rows, heads, 1, size)
        self.values[:rows, :, end : end + 1] = value_states
        return self.keys[:rows, :, first : end + 1], self.values[:rows, :, first : end + 1]

    def get_seq_length(self) -> int:
        return self.owner.end - self.owner.first

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0


class Decoder:
    """Extends sequences together. Not for several threads at once.

    Only for models whose layers all keep keys and values (`suits`), with full or sliding attention.
    """

    def __init__(self, model: Any, pad_token_id: int) -> None:
        self.model = model
        self.pad = pad_token_id
        self.sequences: list[Completion] = []
        self.first = self.end = 0  # columns in use: [first, end)
        self.layers = [_Layer(self) for _ in range(model.config.get_text_config().num_hidden_layers)]
        self.cache = Cache(layers=self.layers)
        self.real = torch.zeros(0, 0, dtype=torch.bool, device=model.device)  # (rows, columns): False is padding

    @staticmethod
    def suits(model: Any) -> bool:
        """Whether all that the model remembers of a text are keys and values."""
        return all(isinstance(layer, DynamicLayer) for layer in DynamicCache(config=model.config).layers)

    def add(self, sequences: Sequence[Completion]) -> None:
        """Read the prompts of some sequences, as one batch, and add the first new token to each."""
        reading = Reading(sequences, self.pad, self.model.device)
        self.read(reading, reading.columns)

    @torch.inference_mode()
    def read(self, reading: "Reading", columns: int) -> bool:
        """Read so many columns more of some prompts. After the last, their sequences have joined: True."""
        start, end = reading.done, min(reading.done + columns, reading.columns)
        echoes = any(item.echo for item in reading.sequences)
        output = self.model(
            input_ids=reading.ids[:, start:end],
            attention_mask=reading.real[:, :end] if reading.padded else None,
            position_ids=reading.positions[:, start:end],
            past_key_values=reading.cache,
            use_cache=True,
            logits_to_keep=0 if echoes else 1,
        )
        if echoes:
            reading.score(output.logits, start)
        reading.done = end
        if end < reading.columns:
            return False
        self._make_room(len(reading.sequences), end, reading.cache)
        rows = slice(len(self.sequences), len(self.sequences) + len(reading.sequences))
        where = slice(self.end - end, self.end)
        for layer, filled in zip(self.layers, reading.cache.layers, strict=True):
            layer.keys[rows, :, where] = filled.keys
            layer.values[rows, :, where] = filled.values
        self.real[rows] = False
        self.real[rows, where] = reading.real
        self.sequences.extend(reading.sequences)
        self.first = min(self.first, self.end - end)
        self._choose(output.logits[:, -1], reading.sequences)
        return True

    @torch.inference_mode()
    def step(self) -> None:
        """Add one token to each sequence."""
        if self.end == self.real.shape[1]:
            self._make_room(0, 0, self.cache)
        rows, device = len(self.sequences), self.model.device
        last = torch.tensor([[sequence.new[-1]] for sequence in self.sequences], device=device)  # (B, 1)
        positions = torch.tensor([[sequence.length] for sequence in self.sequences], device=device)  # (B, 1)
        self.real[:rows, self.end] = True
        padded = any(sequence.length < self.end - self.first for sequence in self.sequences)
        output = self.model(
            input_ids=last,
            attention_mask=self.real[:rows, self.first : self.end + 1] if padded else None,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.end += 1
        self._choose(output.logits[:, -1], self.sequences)

    @torch.inference_mode()
    def remove(self, sequence: Completion) -> None:
        """Forget a sequence; the last one takes its place in the buffer."""
        place, last = self.sequences.index(sequence), len(self.sequences) - 1
        self.sequences[place] = self.sequences[last]
        self.sequences.pop()
        if not self.sequences:  # the buffer goes: what a long prompt needed is not kept for ever
            self.first = self.end = 0
            self.real = self.real[:0, :0]
            for layer in self.layers:
                layer.keys = layer.values = None
            return
        if place != last:
            for tensor in self._buffers():
                tensor[place] = tensor[last]
        self.first = self.end - max(other.length for other in self.sequences)

    def _buffers(self) -> list[torch.Tensor]:
        return [self.real, *(tensor for layer in self.layers for tensor in (layer.keys, layer.values))]

    def _make_room(self, rows: int, columns: int, like: Cache) -> None:
        """Room for so many rows more, for `columns` columns before the end and at least one after it.

        `like`: a cache with tensors of the same kind.
        """
        have, used = len(self.sequences), self.end - self.first
        end = max(used, columns)
        if have + rows <= self.real.shape[0] and columns <= self.end < self.real.shape[1]:
            return
        # It shrinks too: what many short ones needed, few long ones do not.
        height = 1 << (have + rows - 1).bit_length()
        width = -(-(end + 1 + GROWTH // 2) // GROWTH) * GROWTH

        def moved(old: torch.Tensor | None, like: torch.Tensor, column: int) -> torch.Tensor:
            shape = list(like.shape)
            shape[0], shape[column] = height, width
            new = like.new_zeros(shape)  # zeros: a NaN would get past the mask
            if old is not None and have:
                kept = old.narrow(0, 0, have).narrow(column, self.first, used)
                new.narrow(0, 0, have).narrow(column, end - used, used).copy_(kept)
            return new

        for layer, other in zip(self.layers, like.layers, strict=True):
            layer.keys = moved(layer.keys, other.keys, 2)
            layer.values = moved(layer.values, other.values, 2)
            layer.is_initialized = True
        self.real = moved(self.real, self.real, 1)
        self.first, self.end = end - used, end

    def _choose(self, logits: torch.Tensor, sequences: Sequence[Completion]) -> None:
        """Append to each sequence the token that its sampling takes from its logits, (B, vocabulary).

        Raises FloatingPointError for logits that are NaN.
        """
        if bool(logits.isnan().any()):
            raise FloatingPointError("the model's logits are NaN: its weights give no numbers")
        for row, item in enumerate(sequences):
            if item.rest is not None:
                logits[row] = item.rest.mask(logits[row])
        if all(item.sampling == Sampling() for item in sequences):
            chosen = logits.argmax(-1).tolist()
        else:
            chosen = [choose(row.float(), item) for item, row in zip(sequences, logits, strict=True)]
        for item, row, token in zip(sequences, logits, chosen, strict=True):
            if item.logprobs >= 0:
                item.score(row, token)
            item.add(token)


def choose(logits: torch.Tensor, sequence: Completion) -> int:
    """The next token of a sequence from its logits, (vocabulary,)."""
    sampling = sequence.sampling
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted({*sequence.prompt, *sequence.new}), device=logits.device)
        values = logits[seen]
        penalty = sampling.repetition_penalty
        logits = logits.index_put((seen,), torch.where(values < 0, values * penalty, values / penalty))
    if sampling.temperature == 0:
        return int(logits.argmax())
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < len(logits):
        logits = logits.masked_fill(logits < torch.topk(logits, sampling.top_k).values[-1], -torch.inf)
    probabilities = logits.softmax(-1)
    if sampling.top_p < 1:
        ordered, tokens = probabilities.sort(descending=True)
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p  # the first token is always kept
        probabilities[tokens[beyond]] = 0
    return int(torch.multinomial(probabilities, 1, generator=sequence.generator))


class _Watched(Decoder):
    """Keeps the logits by which each token was chosen."""

    def __init__(self, model: Any, pad_token_id: int) -> None:
        super().__init__(model, pad_token_id)
        self.seen: dict[Completion, list[torch.Tensor]] = {}

    def _choose(self, logits: torch.Tensor, sequences: Sequence[Completion]) -> None:
        for sequence, row in zip(sequences, logits, strict=True):
            self.seen.setdefault(sequence, []).append(row.float())
        super()._choose(logits, sequences)


# What an architecture's own code raises at a cache, or arguments, that it does not know, and ours where nothing comes.
UNABLE = (
    *(RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError),
    FloatingPointError,
)


def gives_numbers(model: Any) -> bool:
    """Whether the logits of a short text are numbers: not where weights are NaN."""
    ids = torch.arange(1, 9, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
    try:
        with torch.inference_mode():
            return not bool(model(input_ids=ids, use_cache=False).logits.isnan().any())
    except UNABLE:
        return True  # asked for a completion, it says so itself


def works(model: Any, pad_token_id: int, columns: int = 1 << 20) -> bool:
    """Whether sequences that join one another give what each gives alone: tried, since no class name tells.

    The logits of two sequences, of which the second joins the first, against a forward pass over each alone. Their
    prompts are read so many `columns` at a time.
    """
    if not Decoder.suits(model):
        return False
    count = model.get_input_embeddings().weight.shape[0]
    sequences = [
        Completion([(start + 7 * place) % count for place in range(length)]) for start, length in ((3, 9), (5, 4))
    ]
    decoder = _Watched(model, pad_token_id)

    def add(sequence: Completion) -> None:
        reading = Reading([sequence], pad_token_id, model.device)
        while not decoder.read(reading, columns):
            pass

    try:
        add(sequences[0])
        decoder.step()
        add(sequences[1])
        decoder.step()
        decoder.step()
        for sequence in sequences:
            ids = torch.tensor([[*sequence.prompt, *sequence.new[:-1]]], device=model.device)
            with torch.inference_mode():
                expected = model(input_ids=ids, use_cache=False).logits[0, len(sequence.prompt) - 1 :].float()
            found = torch.stack(decoder.seen[sequence])
            close = 0.1 if model.dtype == torch.bfloat16 else 0.01
            if not float((found - expected).abs().mean()) < close * float(expected.std()):
                return False
    except UNABLE as error:
        if "out of memory" in str(error).lower():
            raise
        return False
    return True


def calls(model: Any) -> set[Any]:
    """The modules that a forward pass calls; of the others, the model's own code reads the weights, if anything."""
    called: set[Any] = set()
    hooks = [
        module.register_forward_pre_hook(lambda module, _: called.add(module))
        for module in model.modules()
        if not any(True for _ in module.children())
    ]
    ids = torch.arange(1, 17, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
    was_training = model.training
    try:
        with torch.inference_mode():
            model.eval()(input_ids=ids, use_cache=False)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return called


def pack_linear_layers(model: Any) -> int:
    """Lay out the weights of the linear layers as the CPU's bfloat16 kernels read them; returns how many layers.

    Otherwise oneDNN does so anew at each call. The same that torch's inductor does when it freezes a model. A layer
    that is never called stays as it is.
    """
    if model.device.type != "cpu" or model.dtype != torch.bfloat16 or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return 0
    count, called = 0, calls(model)
    for place, module in model.named_modules():
        for name, child in module.named_children():
            # An expert may just not have been chosen.
            if type(child) is torch.nn.Linear and (child in called or ".experts" in place):
                setattr(module, name, _PackedLinear(child))
                count += 1
    return count


class _PackedLinear(torch.nn.Module):
    """A linear layer for inference in bfloat16 on a CPU."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 1)
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    @property
    def weight(self) -> torch.Tensor:
        """(out, in), made anew: for code that looks at it, not for what multiplies by it."""
        dense: torch.Tensor = self.packed.to_dense()
        return dense

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(states, self.packed, self.bias, "none", [], "")
        return out
