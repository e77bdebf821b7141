"""Generation behind a bounded queue: one thread, which completes many prompts together and lets each go when done.

`Engine.submit` may be called from any thread; what it returns is filled by the engine's thread, the only one that
touches the model. Prompts are encoded by another (encoder.py).
"""

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, cast

import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    RESOURCE_EXHAUSTED,
    TEMPORARILY_UNAVAILABLE,
)

from code_model import memory
from code_model.decoding import Completion, Decoder, Reading, Sampling, pack_linear_layers, works
from code_model.encoder import Encoder
from code_model.healing import Rest, Start, take_back, vocabulary
from code_model.messages import PROTOCOL, CompletionUsage, EngineStats, FinishReason, TokenLogprob
from code_model.params import GenerationParams, invalid
from code_model.text import TextStream, encode_completions, encode_prompt
from code_model.threads import Threads
from code_model.whole_batch import end_tokens, masks_padding, positions

IDLE_S = 10.0  # without a request, after which the thread ends
REMEMBERED = 1000  # finished requests whose usage is still known
PIECE_S = 0.1  # how long prompts are read before those under way get their next token
LEAST_COLUMNS = 16  # of prompts, that are read at once
PROBED = 4  # columns
ECHOED = 64  # columns


@dataclass(frozen=True)
class Limits:
    """What the engine takes on. `model_config` at loading may set each; `SERVING_…` variables in the container do."""

    max_batch: int = 32  # completions at once
    max_queue: int = 128  # completions that wait
    max_prompt_tokens: int = 0  # 0: as many as the model has positions, and the memory room
    max_new_tokens: int = 2048  # that one request may ask for
    max_batch_tokens: int = 65_536  # prompts and completions in one batch: bounds the memory for keys and values
    prefill_tokens: int = 2048  # of prompts that are read together
    deadline_s: float = 55.0  # from submission; below the server's timeout


@dataclass(frozen=True)
class Usage:
    """What one completion took."""

    prompt_tokens: int
    completion_tokens: int  # those that spell out what was taken back from the prompt too
    queue_s: float  # from submission to the start of its generation
    first_token_s: float  # from submission
    batch: int  # completions that were under way when it began, itself too

    def message(self) -> CompletionUsage:
        """For the engine's socket."""
        return cast(CompletionUsage, asdict(self))


@dataclass(frozen=True)
class Result:
    """A finished completion."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    logprobs: list[TokenLogprob] | None = None


@dataclass(eq=False)
class Request:
    """One prompt on its way; `future` gets its Result, or a MlflowException."""

    prompt: str
    params: GenerationParams
    deadline: float  # on the monotonic clock
    on_text: Callable[[str], None] | None = None  # called by the engine's thread with each piece of the completion
    id: str = ""
    logprobs: int = -1  # of how many tokens in each place, beside the one that is taken; -1: of none
    echo: bool = False  # of the prompt's too
    future: "Future[Result]" = field(default_factory=Future)
    submitted: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    encoded: bool = False
    # From then on:
    prompt_tokens: int = 0  # those taken back for healing too
    held: str = ""  # their text
    completion: Completion | None = None
    text: TextStream | None = None
    started: float = 0.0
    first_token: float = 0.0
    batch: int = 0

    def cancel(self) -> None:
        """Stop generating: at the latest after the token under way its place is free."""
        self.cancelled = True


class Engine:
    """Completes prompts with one model."""

    def __init__(self, model: Any, tokenizer: Any, limits: Limits, whole: Callable[..., list[str]]) -> None:
        """`whole(prompts, params, stopping)`: completes a batch in one go, for models in which sequences cannot join
        and leave, such as those that keep more than keys and values of a text."""
        self.model, self.tokenizer, self.limits = model, tokenizer, limits
        self.positions = positions(model.config)
        self.room = memory.tokens_that_fit(model)  # of prompts and completions, in one batch; None: unknown
        self.ends = end_tokens(model)
        pad = tokenizer.pad_token_id
        self.decoder = Decoder(model, pad if pad is not None else next(iter(self.ends), 0))
        words = vocabulary(tokenizer)  # made now, and not while the first prompt waits
        self.longest_token = max(map(len, (*words.texts, *tokenizer.all_special_tokens)), default=1)  # characters
        self.encoder = Encoder()
        self.in_pieces = works(model, self.decoder.pad, PROBED)
        self.whole = None if self.in_pieces or works(model, self.decoder.pad) else whole
        self._news = threading.Condition()
        self._inbox: deque[Request] = deque()
        self._encoding = 0  # requests on their way into the inbox
        self._waiting: deque[Request] = deque()  # the engine's thread alone
        self._active: list[Request] = []
        self._joining: list[Request] = []  # whose prompts are being read
        self._reading: Reading | None = None
        self._read_rate = 1000.0  # tokens of prompts/s
        self._usage: dict[str, list[Usage]] = {}
        self._known: dict[str, list[Request]] = {}
        self._tokens_done = self._steps = 0
        self._seconds_per_completion = 1.0
        self._thread: threading.Thread | None = None
        self._packed = False
        self._threads = Threads()

    # For every thread

    def submit(
        self,
        rows: Sequence[tuple[str, GenerationParams]],
        id: str = "",
        on_text: Callable[[str], None] | None = None,
        deadline_s: float | None = None,
        logprobs: int = -1,
        echo: bool = False,
    ) -> list[Request]:
        """Queue some prompts, all or none. Raises MlflowException, RESOURCE_EXHAUSTED, where the queue is full.

        With `logprobs` the results tell how likely each token was, and so many others in its place; with `echo` the
        prompt's tokens too. No token of the prompt's end is taken back then.
        """
        if self.whole is not None and logprobs >= 0:
            raise invalid(f"logprobs is {logprobs}. Expected none: this model's are not known here.")
        most = self.limits.max_batch + self.limits.max_queue
        if len(rows) > most:
            raise invalid(f"{len(rows)} prompts in one request. Expected {most} at most here.")
        limit = min(deadline_s or self.limits.deadline_s, self.limits.deadline_s)
        until = time.monotonic() + limit
        requests = [Request(prompt, params, until, on_text, id, logprobs, echo) for prompt, params in rows]
        with self._news:
            waiting = self._count_waiting()
            free = max(0, self.limits.max_batch - len(self._active) - len(self._joining))
            if waiting + len(rows) > self.limits.max_queue + free:
                raise MlflowException(
                    f"{waiting} completions wait already, and the queue has {self.limits.max_queue} places. "
                    f"Ask again in {self.retry_after_s():.0f} s.",
                    error_code=RESOURCE_EXHAUSTED,
                )
            self._encoding += len(requests)
            if id:
                self._known[id] = requests
        for request in requests:
            self.encoder.submit(len(request.prompt), partial(self._take_in, request, requests))
        return requests

    def cancel(self, id: str) -> None:
        """Stop the completions of a request by its id, if they are under way."""
        for request in self._known.get(id, []):
            request.cancel()

    def usage(self, id: str) -> list[Usage]:
        """What the completions of a request took that ended lately; empty where it is not known."""
        return self._usage.get(id, [])

    def stats(self) -> EngineStats:
        """Completions under way and waiting, steps and tokens so far."""
        return {
            "protocol": PROTOCOL,
            "active": len(self._active) + len(self._joining),
            "waiting": self._count_waiting(),
            "steps": self._steps,
            "tokens": self._tokens_done,
        }

    def retry_after_s(self) -> float:
        """How long it may take until the queue has a free place."""
        return max(1.0, self._seconds_per_completion)

    def _count_waiting(self) -> int:
        return self._encoding + len(self._inbox) + len(self._waiting)

    # The encoder's thread

    def _take_in(self, request: Request, group: list[Request]) -> None:
        """Prepare a request. The engine's thread goes on with all of a group together."""
        try:
            if not request.cancelled:
                self._prepare(request)
        except Exception as error:  # of a tokenizer's, too
            self._fail(request, _failure(error))
        with self._news:
            request.encoded = True
            if not all(other.encoded for other in group):
                return
            self._encoding -= len(group)
            self._inbox.extend(group)
            self._news.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
                self._thread.start()

    def _prepare(self, request: Request) -> None:
        """Encode a prompt. Raises MlflowException for what exceeds the limits."""
        wanted = request.params.max_new_tokens
        if wanted > self.limits.max_new_tokens:
            raise invalid(f"max_new_tokens is {wanted}. Expected {self.limits.max_new_tokens} at most here.")
        self._check_characters(request.prompt, wanted)
        ids = encode_prompt(self.tokenizer, request.prompt)
        self._check_tokens(len(ids), wanted)
        start = take_back(self.tokenizer, ids, request.prompt) if request.logprobs < 0 else Start(ids, "", [])
        rest = Rest.of(self.tokenizer, start.held)
        params = request.params
        sampling = Sampling(params.temperature, params.top_p, params.top_k, params.repetition_penalty)
        if params.temperature == 0:
            sampling = Sampling(repetition_penalty=params.repetition_penalty)
        generator = None
        if params.temperature > 0:
            generator = torch.Generator(device=self.model.device)
            generator.manual_seed(params.seed) if params.seed >= 0 else generator.seed()
        request.prompt_tokens, request.held = len(ids), start.held
        request.completion = Completion(
            start.ids, sampling, generator, rest, logprobs=request.logprobs, echo=request.echo and request.logprobs >= 0
        )
        request.text = TextStream(self.tokenizer, start.ids, params.stop, start.held)

    def _check_characters(self, prompt: str, wanted: int) -> None:
        """Refuse, before it is encoded, a prompt that has too many tokens however long those are."""
        known = [limit - wanted for limit in (self.positions, self.room) if limit is not None]
        if self.limits.max_prompt_tokens:
            known.append(self.limits.max_prompt_tokens)
        if known and len(prompt) > max(min(known), 1) * self.longest_token:
            raise invalid(
                f"A prompt has {len(prompt)} characters. Expected {max(min(known), 0)} tokens at most, of which none "
                f"has more than {self.longest_token} characters."
            )

    def _check_tokens(self, count: int, wanted: int) -> None:
        if 0 < self.limits.max_prompt_tokens < count:
            raise invalid(f"A prompt has {count} tokens. Expected {self.limits.max_prompt_tokens} at most here.")
        asked = f"A prompt of {count} tokens and max_new_tokens={wanted} exceed the"
        if self.positions is not None and count + wanted > self.positions:
            raise invalid(f"{asked} model's {self.positions} positions. Expected a shorter prompt or fewer new tokens.")
        if self.room is not None and count + wanted > self.room:
            raise invalid(
                f"{asked} {self.room} tokens that this machine's memory has room for. Expected a shorter prompt or "
                "fewer new tokens."
            )

    # The engine's thread

    def _run(self) -> None:
        while True:
            with self._news:
                busy = self._inbox or self._waiting or self._joining or self._active
                if not busy and not self._news.wait_for(lambda: self._inbox, IDLE_S):
                    self._thread = None  # the next request starts another; until then the model is not held fast
                    return
                self._waiting.extend(self._inbox)
                self._inbox.clear()
            try:
                if not self._packed:
                    self._packed = True
                    with contextlib.suppress(Exception):  # a step of its own tells what is wrong with the model
                        pack_linear_layers(self.model)
                self._turn()
            except Exception as error:  # of the model: those who are under way get it, the others their turn
                for request in [*self._active, *self._joining]:
                    self._fail(request, _failure(error))
                self._active.clear()
                self._joining, self._reading = [], None
                self.decoder = Decoder(self.model, self.decoder.pad)

    def _turn(self) -> None:
        """One step of all that are under way, after those that are done or given up have left and others joined."""
        for request in [*self._waiting, *self._joining, *self._active]:
            if request.cancelled:
                self._fail(request, _unavailable("The client has gone."))
            elif time.monotonic() > request.deadline:
                seconds = time.monotonic() - request.submitted
                what = f"No answer within {seconds:.0f} s. Ask for fewer tokens, or again when there is less to do."
                self._fail(request, _unavailable(what))
        self._active = [request for request in self._active if self._goes_on(request)]
        self._waiting = deque(request for request in self._waiting if not request.future.done())
        if self.whole:
            self._complete_whole()
            return
        if all(request.future.done() for request in self._joining):
            self._joining, self._reading = [], None
        if self._reading is None:
            self._choose_joining()
        if self._reading is not None:
            self._read(self._reading)
            self._active = [request for request in self._active if self._goes_on(request)]
        if self._active:
            if (threads := self._threads.look()) is not None:
                torch.set_num_threads(threads)  # for this thread, which alone computes
            self.decoder.step()
            self._steps += 1
            self._look(self._active)

    def _goes_on(self, request: Request) -> bool:
        if not request.future.done():
            return True
        if request.completion in self.decoder.sequences:
            self.decoder.remove(request.completion)
        return False

    def _choose_joining(self) -> None:
        """Begin with those waiting that join now: as many as have room, and as belong into one batch of prompts."""
        joining: list[Request] = []
        longest = max((_final(request) for request in self._active), default=0)
        most = min(self.limits.max_batch_tokens, self.room or self.limits.max_batch_tokens)
        for request in self._waiting:
            size, widest = _length(request), max(map(_length, [*joining, request]))
            rows = len(self._active) + len(joining) + 1
            longest = max(longest, _final(request))
            if joining and (
                rows > self.limits.max_batch
                or rows * longest > most
                or (len(joining) + 1) * widest > self.limits.prefill_tokens
                or 2 * size < widest  # would be mostly padding
            ):
                break
            if rows > self.limits.max_batch or (self._active and rows * longest > most):
                break
            joining.append(request)
        if not joining:
            return
        now = time.monotonic()
        for request in joining:
            self._waiting.remove(request)
            request.started, request.batch = now, len(self._active) + len(joining)
        self._joining = joining
        sequences = [request.completion for request in joining if request.completion]
        self._reading = Reading(sequences, self.decoder.pad, self.model.device)

    def _read(self, reading: Reading) -> None:
        """Read on in the prompts of those that join; after the last piece they are under way."""
        rows, columns = len(reading.sequences), reading.columns
        if self.in_pieces and any(request.echo for request in self._joining):
            columns = ECHOED  # the logits of each column are looked at
        elif self.in_pieces and self._active:
            columns = max(LEAST_COLUMNS, int(self._read_rate * PIECE_S / rows))
        before, began = reading.done, time.monotonic()
        joined = self.decoder.read(reading, columns)
        rate = rows * (reading.done - before) / max(time.monotonic() - began, 1e-6)
        self._read_rate += (rate - self._read_rate) / 4
        if not joined:
            return
        requests, self._joining, self._reading = self._joining, [], None
        self._active += requests
        for request in requests:
            request.first_token = time.monotonic()
        self._look(requests)

    def _look(self, requests: list[Request]) -> None:
        """Take in the newest token of each: its text, and whether it was the last."""
        for request in requests:
            completion, text = request.completion, request.text
            assert completion is not None
            assert text is not None
            self._tokens_done += 1
            finish: FinishReason | None = None
            if completion.new[-1] in self.ends:
                finish = "stop"
            else:
                text.add(completion.new[-1])
                if text.stopped:
                    finish = "stop"
                elif len(completion.new) >= request.params.max_new_tokens:
                    finish = "length"
            if finish:
                text.finish()
                finish = "stop" if text.stopped else finish  # by what had been held back
            if request.on_text and (piece := text.take()):
                request.on_text(piece)
            if finish:
                self._finish(request, text.all, finish, len(completion.new))

    def _complete_whole(self) -> None:
        """Complete those waiting that have the same parameters, in one go, to the end."""
        if not self._waiting:
            return
        params = self._waiting[0].params
        batch = [request for request in self._waiting if request.params == params][: self.limits.max_batch]
        if not masks_padding(self.model):
            batch = [request for request in batch if _length(request) == _length(batch[0])]
        self._active = batch
        self._waiting = deque(request for request in self._waiting if request not in batch)
        now = time.monotonic()
        for request in batch:
            request.started, request.batch = now, len(batch)
        assert self.whole is not None
        texts = self.whole([request.prompt for request in batch], params, _Stopping(batch))
        for request, text in zip(batch, texts, strict=True):
            request.first_token = time.monotonic()
            if request.cancelled or time.monotonic() > request.deadline:
                continue  # found out in the next turn
            assert request.completion is not None
            [ids] = encode_completions(self.tokenizer, [request.completion.prompt], [request.held + text])
            tokens = len(ids)
            if request.on_text and text:
                request.on_text(text)
            self._tokens_done += tokens
            self._finish(request, text, "length" if tokens >= params.max_new_tokens else "stop", tokens)

    def _finish(self, request: Request, text: str, reason: FinishReason, tokens: int) -> None:
        assert request.completion is not None
        usage = Usage(
            request.prompt_tokens,
            tokens,
            request.started - request.submitted,
            request.first_token - request.submitted,
            request.batch,
        )
        took = time.monotonic() - request.submitted
        self._seconds_per_completion += (took - self._seconds_per_completion) / 16
        if request.id:
            self._usage.setdefault(request.id, []).append(usage)
            for old in list(itertools.islice(self._usage, max(0, len(self._usage) - REMEMBERED))):
                del self._usage[old]
        self._settle(request)
        request.future.set_result(Result(text, reason, usage, self._logprobs(request.completion)))

    def _logprobs(self, completion: Completion) -> list[TokenLogprob] | None:
        if completion.logprobs < 0:
            return None
        return [
            TokenLogprob(
                token=self._text_of(item.token),
                logprob=item.logprob,
                top={self._text_of(token): value for token, value in reversed(item.top)},  # of one text the likeliest
            )
            for item in completion.scored
        ]

    def _text_of(self, token: int) -> str:
        texts = vocabulary(self.tokenizer).texts
        found = texts[token] if token < len(texts) else ""
        return found or str(self.tokenizer.convert_ids_to_tokens(token))

    def _fail(self, request: Request, error: MlflowException) -> None:
        if not request.future.done():
            self._settle(request)
            request.future.set_exception(error)

    def _settle(self, request: Request) -> None:
        """Forget a request's id when the last of its completions is done."""
        with self._news:
            others = [other for other in self._known.get(request.id, []) if other is not request]
            if all(other.future.done() for other in others):
                self._known.pop(request.id, None)


class _Stopping:
    """Ends `generate` when nobody waits any more; a transformers.StoppingCriteria by shape."""

    def __init__(self, batch: list[Request]) -> None:
        self.batch = batch

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        now = time.monotonic()
        over = [request.cancelled or now > request.deadline for request in self.batch]
        return torch.tensor(over, device=input_ids.device)  # (B,)


def _length(request: Request) -> int:
    """Tokens of a request's prompt that are read."""
    assert request.completion is not None
    return len(request.completion.prompt)


def _final(request: Request) -> int:
    """Tokens of a request when it has all that it asked for."""
    return _length(request) + request.params.max_new_tokens


def _failure(error: Exception) -> MlflowException:
    if isinstance(error, MlflowException):
        return error
    out_of_memory = isinstance(error, MemoryError) or "out of memory" in str(error).lower()
    return MlflowException(
        f"Generation failed: {type(error).__name__}: {error}",
        error_code=RESOURCE_EXHAUSTED if out_of_memory else INTERNAL_ERROR,
    )


def _unavailable(message: str) -> MlflowException:
    return MlflowException(message, error_code=TEMPORARILY_UNAVAILABLE)
