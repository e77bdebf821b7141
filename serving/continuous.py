"""transformers' own continuous batching, in place of serving.decoding: SERVING_BATCHING=transformers.

It keeps the keys and values in pages, and runs in a thread of its own. Greedy completions only. On the CPU that Ratchet
was measured on it is the slower of the two (tests/bench/serve.py), so it is not the default.
"""

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from serving.decoding import Completion

LONGEST_STEP_S = 60.0


class ContinuousDecoder:
    """Extends completions together, as serving.decoding.Decoder does."""

    def __init__(self, model: Any, pad_token_id: int) -> None:
        self.model, self.pad = model, pad_token_id
        self.sequences: list[Completion] = []
        self._names: dict[Completion, str] = {}
        self._tokens: dict[str, deque[int]] = {}  # that have come and are not in their completion yet
        self._seen: dict[str, int] = {}
        self._count = 0
        self._manager: Any = None

    def add(self, sequences: Sequence[Completion]) -> None:
        """Begin some completions, and wait for the first token of each."""
        if self._manager is None:
            from transformers import GenerationConfig

            # The engine ends a completion; nothing here does.
            config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=self.pad)
            self._manager = self.model.init_continuous_batching(generation_config=config)
            self._manager.start()
        for sequence in sequences:
            self._count += 1
            name = str(self._count)
            self._names[sequence], self._tokens[name], self._seen[name] = name, deque(), 0
            most = self.model.config.get_text_config().max_position_embeddings - len(sequence.prompt)
            self._manager.add_request(sequence.prompt, name, most, streaming=True, eos_token_id=-1)
        self.sequences.extend(sequences)
        self._take(sequences)

    def step(self) -> None:
        """Add one token to each completion."""
        self._take(self.sequences)

    def remove(self, sequence: Completion) -> None:
        """Forget a completion."""
        self.sequences.remove(sequence)
        name = self._names.pop(sequence)
        self._manager.cancel_request(name)
        del self._tokens[name], self._seen[name]

    def close(self) -> None:
        """End its thread."""
        if self._manager is not None:
            self._manager.stop(block=True, timeout=10)

    def _take(self, sequences: Sequence[Completion]) -> None:
        """Append the next token to each of some completions. Raises RuntimeError where none comes."""
        until = time.monotonic() + LONGEST_STEP_S
        names = [self._names[sequence] for sequence in sequences]
        while not all(self._tokens[name] for name in names):
            result = self._manager.get_result(timeout=0.05)
            if result is None:
                if time.monotonic() > until or not self._manager.is_running():
                    raise RuntimeError("transformers' continuous batching has stopped")
                continue
            if result.request_id not in self._tokens:
                continue  # of one that was removed
            if result.error:
                raise RuntimeError(result.error)
            name = result.request_id
            self._tokens[name].extend(result.generated_tokens[self._seen[name] :])
            self._seen[name] = len(result.generated_tokens)
        for sequence, name in zip(sequences, names, strict=True):
            sequence.new.append(self._tokens[name].popleft())
