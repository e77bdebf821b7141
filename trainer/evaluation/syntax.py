"""Whether a prompt and its completion are valid code."""

from trainer.data import languages


def parses_cut(prompt: str, completion: str, language: str) -> bool:
    """Whether prompt and completion are valid code, but for a last line that max_new_tokens cut off."""
    return languages.parses(prompt + completion, language) or (
        "\n" in completion.rstrip("\n") and languages.parses(prompt + completion.rpartition("\n")[0], language)
    )
