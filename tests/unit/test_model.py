"""The PyFunc: every form of input, parameters and their refusal, adapters, and no pickle."""

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from transformers import AutoModelForCausalLM, AutoTokenizer

import code_model.pyfunc
from code_model.pyfunc import (
    CodeGenerationModel,
    GenerationParams,
    choose_device,
    choose_dtype,
    generate,
    parse_input,
    read_defaults,
)


class Context:
    def __init__(self, artifacts, model_config=None) -> None:
        self.artifacts = {name: str(path) for name, path in artifacts.items()}
        self.model_config = model_config


def loaded(folder, **config) -> CodeGenerationModel:
    model = CodeGenerationModel()
    model.load_context(Context({"model": folder}, config))
    return model


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """The tiny model's folder as MLflow saves it."""
    path = tmp_path_factory.mktemp("pyfunc") / "model"
    mlflow.pyfunc.save_model(
        path,
        python_model=code_model.pyfunc.__file__,
        artifacts={"model": str(tiny.folder)},
        pip_requirements=[],
        signature=code_model.pyfunc.signature(GenerationParams(max_new_tokens=5)),
        input_example=["a"],
    )
    return path


@pytest.fixture(scope="module")
def pyfunc(saved):
    """The tiny model, loaded by MLflow as a served one is."""
    return mlflow.pyfunc.load_model(saved)


ONE, TWO = ("a", {}), ("b", {"max_new_tokens": 3})


@pytest.mark.parametrize(
    ("model_input", "expected"),
    [
        (["a"], [ONE]),
        ("a", [ONE]),
        (np.array(["a"], dtype=object), [ONE]),
        (np.array([["a"]]), [ONE]),
        ({"prompt": "a"}, [ONE]),
        ({"prompt": np.array("a")}, [ONE]),
        ({"prompt": ["a", "b"], "max_new_tokens": 3}, [("a", {"max_new_tokens": 3}), TWO]),
        ({"prompt": np.array(["a", "b"]), "max_new_tokens": np.array([3, 3])}, [("a", {"max_new_tokens": 3}), TWO]),
        ([{"prompt": "a"}, {"prompt": "b", "max_new_tokens": 3}], [ONE, TWO]),
        (pd.DataFrame({"prompt": ["a"]}), [ONE]),
        (pd.DataFrame([{"prompt": "a"}, {"prompt": "b", "max_new_tokens": 3}]), [ONE, TWO]),
        (pd.DataFrame([["a"]]), [ONE]),
        (pd.Series(["a"]), [ONE]),
        (pd.DataFrame([{"prompt": "a", "seed": None}, {"prompt": "b", "max_new_tokens": 3}]), [ONE, TWO]),
        ({"prompt": np.array("a"), "stop": np.array(["x", "y"])}, [("a", {"stop": ["x", "y"]})]),
        ([{"prompt": "a", "stop": np.array(["x", "y"])}], [("a", {"stop": ["x", "y"]})]),
        ({"prompt": ["a", "b"], "stop": ["x", "y"]}, [("a", {"stop": ["x", "y"]}), ("b", {"stop": ["x", "y"]})]),
    ],
)
def test_forms_of_input(model_input, expected) -> None:
    assert parse_input(model_input) == expected


@pytest.mark.parametrize(
    ("model_input", "expected"),
    [
        ([], "no rows"),
        (pd.DataFrame({"prompt": []}), "no rows"),
        ([3], "Row 0 is a int"),
        (None, "Row 0 is a NoneType"),
        ([{"promt": "a"}], "Expected a text under 'prompt'"),
        ([{"prompt": 3}], "prompt=3"),
        ({"prompt": ["a", "b"], "seed": [1, 2, 3]}, "'seed' has 3 values for 2 prompts"),
    ],
)
def test_bad_input_is_refused_with_the_row(model_input, expected: str) -> None:
    with pytest.raises(MlflowException, match=expected) as caught:
        parse_input(model_input)
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_tokens": 3}, "Unknown generation parameter 'max_tokens'. Expected: max_new_tokens"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 1.5}, "max_new_tokens is 1.5. Expected a int"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"seed": 2**70}, "seed is"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_p": 0}, "top_p is 0"),
        ({"stop": [1]}, "Expected a list of texts"),
        ({"stop": [""]}, "Expected a list of texts"),
    ],
)
def test_bad_parameter_is_refused_by_name(changes, expected: str) -> None:
    with pytest.raises(MlflowException, match=expected):
        GenerationParams().updated(changes)


def test_loaded_model_answers_every_prompt(pyfunc) -> None:
    answers = pyfunc.predict(["def f():\n", ""], params={"max_new_tokens": 3})
    assert len(answers) == 2
    assert all(isinstance(answer, str) for answer in answers)


def test_loaded_model_refuses_an_unknown_param_that_mlflow_would_drop(pyfunc) -> None:
    with pytest.raises(MlflowException, match="Unknown generation parameter 'max_tokens'"):
        pyfunc.predict(["a"], params={"max_tokens": 3})


def test_params_of_other_models_are_left_to_mlflow() -> None:
    enforce = vars(mlflow.pyfunc)["_enforce_params_schema"]
    assert enforce({"anything": 1}, None) == {}
    assert enforce(None, None) is None


def test_defaults_come_from_the_logged_signature(pyfunc) -> None:
    assert pyfunc.predict(["abc"]) == pyfunc.predict(["abc"], params={"max_new_tokens": 5})


def test_rows_with_their_own_parameters_keep_their_order(tiny) -> None:
    model = loaded(tiny.folder)
    rows = [{"prompt": "x", "max_new_tokens": 2}, {"prompt": "y", "max_new_tokens": 6}, {"prompt": "z"}]
    together = model.predict(None, rows, {"max_new_tokens": 2})
    assert together == [model.predict(None, [row], {"max_new_tokens": 2})[0] for row in rows]
    assert len(together[1]) > len(together[0])


def test_batch_does_not_change_an_answer(tiny) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny.folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny.folder)
    prompts = ["a", "a longer prompt, so that the others are padded", "b\n"]
    params = GenerationParams(max_new_tokens=8)
    alone = [generate(model, tokenizer, [prompt], params)[0] for prompt in prompts]
    assert generate(model, tokenizer, prompts, params) == alone


def test_seed_repeats_a_sample_and_stop_cuts_it(tiny) -> None:
    model = loaded(tiny.folder)
    params = {"temperature": 1.0, "seed": 1, "max_new_tokens": 20}
    [sample] = model.predict(None, ["a"], params)
    assert model.predict(None, ["a"], params) == [sample]
    assert model.predict(None, ["a"], params | {"seed": 2}) != [sample]
    stop = sample[3]
    assert model.predict(None, ["a"], params | {"stop": [stop]}) == [sample[: sample.index(stop)]]


def test_prompt_longer_than_the_model_is_refused(tiny) -> None:
    with pytest.raises(MlflowException, match="exceed the model's 4096 positions"):
        loaded(tiny.folder).predict(None, ["a" * 4096])


def test_adapter_is_merged_and_answers_as_the_merged_model(tiny, tmp_path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(tiny.folder, dtype=torch.float32)
    tuned = get_peft_model(
        base, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny.folder)
    tuned.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    tuned.merge_and_unload().save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    adapter = CodeGenerationModel()
    adapter.load_context(
        Context({"model": tmp_path / "adapter", "base_model": tiny.folder}, {"device": "cpu", "dtype": "float32"})
    )
    merged = loaded(tmp_path / "merged", device="cpu", dtype="float32")
    prompts = ["def f():\n", "x = "]
    assert adapter.predict(None, prompts) == merged.predict(None, prompts)
    assert adapter.predict(None, prompts) != loaded(tiny.folder, dtype="float32").predict(None, prompts)


def test_pickled_weights_are_not_loaded(tiny, tmp_path) -> None:
    (tmp_path / "config.json").write_bytes((tiny.folder / "config.json").read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(MlflowException, match="no pickle is loaded"):
        loaded(tmp_path)


def test_saved_pyfunc_holds_no_pickle(saved) -> None:
    names = [path.name for path in saved.rglob("*") if path.is_file()]
    assert {"pyfunc.py", "model.safetensors"} <= set(names)
    assert not [name for name in names if name.endswith((".pkl", ".bin", ".pt", ".pth"))]


def test_unexpected_failure_is_an_internal_error_and_no_memory_says_so(tiny, monkeypatch) -> None:
    model = loaded(tiny.folder)
    for raised, code in ((RuntimeError("CUDA out of memory"), "RESOURCE_EXHAUSTED"), (KeyError("x"), "INTERNAL_ERROR")):

        def fail(*args, raised=raised, **kwargs):
            raise raised

        monkeypatch.setattr(model.model, "forward", fail)
        with pytest.raises(MlflowException, match="Generation failed") as caught:
            model.predict(None, ["a"])
        assert caught.value.error_code == code


def test_device_is_checked() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(MlflowException, match="Expected auto, cpu or cuda"):
        choose_device("tpu")
    with pytest.raises(MlflowException, match="Expected auto, bfloat16 or float32"):
        choose_dtype("float99", "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(MlflowException, match="no GPU"):
            choose_device("cuda")


def test_defaults_follow_the_generation_config(tiny, tmp_path) -> None:
    from transformers import GenerationConfig

    assert read_defaults(tmp_path) == GenerationParams()
    GenerationConfig(max_new_tokens=7, do_sample=True, temperature=0.5, top_p=0.9).save_pretrained(tmp_path)
    found = read_defaults(tmp_path)
    assert (found.max_new_tokens, found.temperature, found.top_p) == (7, 0.5, 0.9)
    GenerationConfig(max_new_tokens=7).save_pretrained(tmp_path)
    assert read_defaults(tmp_path) == GenerationParams(max_new_tokens=7)
