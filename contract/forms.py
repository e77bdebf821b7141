"""YAML files that people write, checked against a form: the gate's and the trials' policies, and the loop's."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from contract.errors import InputError, shortened

T = TypeVar("T", bound=BaseModel)


class Section(BaseModel):
    """A part of a form: no key but those that it lists, no NaN and no infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_yes_for_a_number(cls, values: Any) -> Any:
        for name, field in cls.model_fields.items():
            if isinstance(values, dict) and isinstance(values.get(name), bool) and "bool" not in str(field.annotation):
                raise ValueError(f"{name} is {str(values[name]).lower()}: expected a value that is not yes or no")
        return values


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands once: of two values PyYAML would take the last, without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.YAMLError(
                f"the key '{twice}' stands there twice, the second time before line {node.end_mark.line + 1}"
            )
        return super().construct_mapping(node, deep)


def read(path: Path, form: type[T], what: str, page: str) -> T:
    """The file's values. `what`: it is, for messages; `page`: where its keys are explained. Raises InputError."""
    try:
        values = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise InputError(f"{what} '{path}' cannot be read: {error.strerror or error}.") from error
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        # The last ones: of values that are written as YAML's own types, and are none, such as 2024-99-99.
        raise InputError(f"{what} '{path}' is not YAML: {' '.join(str(error).split())[:300]}.") from error
    try:
        return form.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{what} '{path}': {_in_words(error)}. See {page} for all keys.") from error


def _shown(value: object) -> str:
    """A value in a message: not all of what a few letters of YAML can stand for."""
    text = repr(value) if not isinstance(value, (dict, list)) or len(value) < 5 else f"a {type(value).__name__}"
    return shortened(text)


def _in_words(error: ValidationError) -> str:
    words = []
    for item in error.errors(include_url=False, include_context=False):
        place = ".".join(str(part) for part in item["loc"]) or "the whole file"
        value = "" if item["type"] == "missing" else f" is {_shown(item['input'])}"
        what = "no such key" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        if item["type"] == "model_type":
            what = "expected keys with values"
        words.append(f"{place}{value}: {what}")
    return "; ".join(words)
