"""How many tokens' keys and values the free memory has room for."""

from pathlib import Path
from typing import Any

SHARE = 0.4  # of what is free: the buffer exists twice while it grows, and a step needs memory too
CGROUP = Path("/sys/fs/cgroup")


def tokens_that_fit(model: Any) -> int | None:
    """Tokens of prompts and completions under way at once; None where the memory, or the model's shape, is unknown."""
    size, free = bytes_per_token(model), free_bytes(model.device)
    return int(SHARE * free / size) if size and free is not None else None


def bytes_per_token(model: Any) -> int:
    """Of keys and values, in all layers; 0 where the configuration does not say."""
    config = model.config.get_text_config()
    try:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * config.num_hidden_layers * heads * head * model.dtype.itemsize)
    except (AttributeError, TypeError, ValueError, ZeroDivisionError):
        return 0


def free_bytes(device: Any) -> int | None:
    """What is free on a device: of the GPU's memory, or of this machine's within the limit of its container."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [_available(), _below_limit()]
    return min((value for value in found if value is not None), default=None)


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):  # not Linux
        return None


def _below_limit() -> int | None:
    """Of a container, by control groups version 2."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        return None if limit == "max" else max(0, int(limit) - used)
    except (OSError, ValueError):
        return None
