"""Small tokenizers of the families that code models have, trained on some files of the standard library."""

import asyncio
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPECIAL = ["<unk>", "<s>", "</s>"]
SPACE = "▁"


@lru_cache(maxsize=1)
def _texts() -> tuple[str, ...]:
    folder = Path(asyncio.__file__).parent
    return tuple(path.read_text() for path in sorted(folder.glob("*.py"))[:12])


def _sentencepiece(tokenizer: Tokenizer) -> Tokenizer:
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=[*SPECIAL, *BYTES], show_progress=False)
    tokenizer.train_from_iterator(_texts(), trainer)
    whole = json.loads(tokenizer.to_str())  # the bytes are tokens like any other
    whole["added_tokens"] = [token for token in whole["added_tokens"] if token["content"] in SPECIAL]
    return Tokenizer.from_str(json.dumps(whole))


def byte_level(bos: bool = False) -> Tokenizer:
    """As GPT-2, Qwen2 and StarCoder2 have it; `bos`: with a first token, as Llama 3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return _with_bos(tokenizer) if bos else tokenizer


def llama(markers: tuple[str, ...] = ()) -> Tokenizer:
    """As Llama 2, Code Llama, Phi-3 and the first Mistral have it: a space before every text, bytes for the rest."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = _spaces_and_bytes(first=True)
    tokenizer = _sentencepiece(tokenizer)
    tokenizer.add_special_tokens([AddedToken(marker, normalized=False) for marker in markers])
    return _with_bos(tokenizer)


def gemma() -> Tokenizer:
    """As Gemma has it: no space before a text."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = _spaces_and_bytes(first=False)
    return _with_bos(_sentencepiece(tokenizer))


def metaspace(scheme: str = "first") -> Tokenizer:
    """As transformers converts newer SentencePiece models (Mistral v0.3, Llama with legacy=False)."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=False)
    tokenizer.decoder = _spaces_and_bytes(first=True)
    return _with_bos(_sentencepiece(tokenizer))


def unigram() -> Tokenizer:
    """SentencePiece's other model, with bytes for what it does not know."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="always", split=False)
    texts = [line + "\n" for text in _texts() for line in text.split("\n")]
    trainer = trainers.UnigramTrainer(
        vocab_size=800, special_tokens=SPECIAL, unk_token="<unk>", max_piece_length=8, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    vocabulary = [(piece, score) for piece, score in trained["vocab"]]
    vocabulary += [(byte, -20.0) for byte in BYTES]
    tokenizer.model = models.Unigram(vocabulary, unk_id=0, byte_fallback=True)
    tokenizer.decoder = _spaces_and_bytes(first=True)
    return _with_bos(tokenizer)


def wordpiece() -> Tokenizer:
    """As BERT has it: letters in lower case, and no white space. It gives no code back."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        _texts(), trainers.WordPieceTrainer(vocab_size=800, special_tokens=SPECIAL, show_progress=False)
    )
    return _with_bos(tokenizer)


FAMILIES = {
    "byte-level": byte_level,
    "byte-level with BOS": lambda: byte_level(bos=True),
    "Llama 2": llama,
    "Gemma": gemma,
    "Metaspace, first": metaspace,
    "Metaspace, always": lambda: metaspace("always"),
    "Unigram": unigram,
}


def wrap(tokenizer: Tokenizer, **options: Any) -> Any:
    """The tokenizer as transformers has it."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>", **options
    )


def _spaces_and_bytes(first: bool) -> Any:
    """SentencePiece's decoder; `first`: a first space is dropped."""
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if first else parts)


def _with_bos(tokenizer: Tokenizer) -> Tokenizer:
    number = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", number)])
    return tokenizer
