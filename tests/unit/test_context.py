"""What an editor knows as one text, and what of it is shown where not all fits."""

import random
import string
from collections.abc import Sequence

import pytest

from code_model import fim
from code_model.context import Counter, _part_of, fit, imports_of
from code_model.fim import Context, File

FILE = '''"""Billing."""

import decimal
from billing import (
    Customer,
    Invoice,
)
import unrelated

RATE = 3


class Ledger:
    """Entries."""

    def first(self):
        """Add up
        what is there.
        """
        total = 0
        return total

    def second(
        self,
        customer: Customer,
    ) -> Invoice:
        amount = decimal.Decimal(RATE)
        for entry in customer.entries:
            amount += entry.amount
        return '''


def count(texts) -> list[int]:
    """One token for four characters, or a part of them."""
    return [-(-len(text) // 4) for text in texts]


def size(context: Context) -> int:
    return count([fim.write(context)])[0]


def cut(prefix: str, budget: int, suffix: str | None = None, others: tuple[File, ...] = ()) -> Context:
    return fit(Context(prefix, suffix, "billing/ledger.py", others), budget, count, size)


@pytest.mark.parametrize(
    "context",
    [
        Context(""),
        Context("def f():\n"),
        Context("a", "b"),
        Context("a\n", "", "x/y.py"),
        Context("a", None, "x.py", (File("z.py", "q = 1\n"), File("w.py", "r\n\n"))),
        Context("", "s", "", (File("z.py", ""),)),
    ],
)
def test_what_is_written_is_read_again(context: Context) -> None:
    assert fim.read(fim.write(context)) == context or context.path == ""
    assert fim.write(fim.read(fim.write(context))) == fim.write(context)


def test_any_text_is_a_prefix() -> None:
    for text in ("x = '<fim_middle>'", "a<file_sep>b", "", "<fim_suffix>"):
        assert fim.read(text) == Context(text)


class Tokenizer:
    def __init__(self, *tokens: str) -> None:
        self.tokens = tokens

    def get_vocab(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        # Qwen2.5-Coder, by its README.
        (
            (*fim.KNOWN[2], "<|file_sep|>"),
            "<|file_sep|>b.go\ny\n<|file_sep|>a.go\n<|fim_prefix|>p<|fim_suffix|>s<|fim_middle|>",
        ),
        # StarCoder2, by its paper.
        ((*fim.NEUTRAL, fim.FILE), "<file_sep>b.go\ny\n<file_sep><fim_prefix>a.go\np<fim_suffix>s<fim_middle>"),
        # Code Llama has no token for files, SmolLM2 none for gaps, GPT-2 neither.
        (fim.KNOWN[4], "// b.go\ny\n▁<PRE>// a.go\np▁<SUF>s▁<MID>"),
        ((fim.FILE,), "<file_sep>b.go\ny\n<fim_suffix>s\n<fim_middle><file_sep>a.go\np"),
        ((), "// b.go\ny\n<fim_suffix>s\n<fim_middle>// a.go\np"),
    ],
)
def test_each_model_is_asked_in_its_own_form(tokens, expected: str) -> None:
    context = Context("p", "s", "a.go", (File("b.go", "y"),))
    assert fim.rendered(context, Tokenizer(*tokens)) == expected
    assert fim.render(fim.write(context), Tokenizer(*tokens)) == expected
    assert fim.render("plain", Tokenizer(*tokens)) == "plain"


def test_imports_are_found_with_all_of_their_lines() -> None:
    assert imports_of(FILE) == [
        "import decimal\n",
        "from billing import (\n    Customer,\n    Invoice,\n)\n",
        "import unrelated\n",
    ]
    assert imports_of("use std::fmt;\nfrom = 3\nimportant()\n#include <a.h>\nconst x = require('y');\n") == [
        "use std::fmt;\n",
        "#include <a.h>\n",
        "const x = require('y');\n",
    ]


def test_all_of_a_file_that_fits_is_shown() -> None:
    assert cut(FILE, 1000, "amount\n") == Context(FILE, "amount\n", "billing/ledger.py")


def test_first_the_nearest_lines_with_imports_of_use_and_the_class() -> None:
    found = cut(FILE, 85)
    lines = found.prefix.split("\n")
    assert lines[-1] == "        return "
    assert "class Ledger:" in lines
    assert "    def second(" in lines
    assert "import decimal" in lines
    assert "import unrelated" not in lines
    assert "    def first(self):" not in lines
    assert size(found) <= 85


def test_an_import_is_shown_in_part_and_however_deep_the_cursor_is() -> None:
    names = "".join(f"  name{number},\n" for number in range(30))
    nested = "".join(f"{'  ' * depth}if (some_condition_of_{depth}) {{\n" for depth in range(1, 9))
    text = f"import {{\n{names}}} from 'lib';\n\nfunction outer(a) {{\n{nested}" + f"{'  ' * 9}more()\n" * 40
    lines = cut(f"{text}{'  ' * 9}name7(", 100).prefix.split("\n")
    assert lines[:3] == ["import {", "  name7,", "} from 'lib';"]
    assert "function outer(a) {" in lines


def test_a_window_does_not_begin_inside_of_a_docstring() -> None:
    text = 'def f():\n    """One.\n\n' + "    More of it.\n" * 30 + '    """\n    return '
    lines = cut(text, 60).prefix.split("\n")
    assert lines[:2] == ["def f():", '    """One.']
    assert lines[-1] == "    return "


def test_the_suffix_has_a_share_and_what_the_prefix_leaves() -> None:
    after = "".join(f"line_{n}\n" for n in range(100))
    assert len(cut("x = ", 100, after).suffix or "") > 300  # all of the room
    both = cut("".join(f"before_{n}\n" for n in range(100)), 100, after)
    assert 60 <= len(both.suffix or "") <= 120
    assert len(both.prefix) > 200


def test_other_files_fill_what_is_left() -> None:
    others = (File("billing/other.py", "".join(f"other_{n}\n" for n in range(50))),)
    found = cut("x = ", 60, None, others)
    assert 55 <= size(found) <= 60
    assert found.others[0].path == "billing/other.py"
    assert others[0].text.startswith(found.others[0].text)
    assert not cut(FILE * 3, 60, None, others).others  # the file comes first


def test_a_line_longer_than_the_window_keeps_its_end() -> None:
    found = cut("x = '" + "a" * 5000 + "tail", 50)
    assert found.prefix.endswith("atail")
    assert 40 <= size(found) <= 50


@pytest.mark.parametrize("seed", range(20))
def test_it_always_fits(seed: int) -> None:
    rng = random.Random(seed)
    pieces = [*string.printable, "import x\n", "    ", '"""', "def f(:\n", "}\n", "\n\n", "class A\n"]
    texts = ["".join(rng.choices(pieces, k=rng.randrange(600))) for _ in range(3)]
    budget = rng.randrange(8, 200)
    found = fit(Context(texts[0], texts[1], "a.py", (File("b.py", texts[2]),)), budget, count, size)
    assert size(found) <= max(budget, size(Context("", "", "a.py")))
    line = texts[0].rpartition("\n")[2]
    assert found.prefix.endswith(line[-8:]) or budget < 60
    assert texts[1].startswith(found.suffix or "")


def test_what_is_far_from_the_cursor_costs_nothing() -> None:
    """A file of ten megabytes, or one line of it: no more is counted than could be shown, and its imports still are."""
    counted: list[int] = []

    def count(texts: Sequence[str]) -> list[int]:
        counted.append(sum(map(len, texts)))
        return [len(text) for text in texts]

    budget = 500
    far = "import near\n" + "x = far\n" * 1_000_000 + "near\n"
    shown = fit(
        Context(far, far, "a.py"), budget, count, lambda context: len(context.prefix) + len(context.suffix or "")
    )
    assert shown.prefix.startswith("import near\n")
    assert shown.prefix.endswith("near\n")
    one_line = "x" * 10_000_000
    fit(Context(one_line, one_line, "a.py"), budget, count, lambda context: len(context.prefix))
    assert sum(counted) < 2_000_000


def test_long_texts_are_not_remembered() -> None:
    class Tokenizer:
        def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[str]]:
            return {"input_ids": texts}

    count = Counter(Tokenizer())
    assert count(["a", "b" * 1_000_000, "a"]) == [1, 1_000_000, 1]
    assert list(count._known) == ["a"]


def shown(text: str, budget: int = 140) -> list[str]:
    """The lines before the cursor that are shown of a text."""
    return cut(text, budget).prefix.splitlines()


FILLING = "".join(f"            fill({number});\n" for number in range(60))


@pytest.mark.parametrize(
    ("head", "wanted"),
    [
        ("class A\n{\n    void f()\n    {\n        if (x)\n        {\n", ["class A", "    void f()", "        if (x)"]),
        ("int\nf(int a,\n  int b)\n{\n        {\n", ["f(int a,"]),
        (
            "class A {\npublic:\n    void f() {\n        if (x) {\n#if B\n",
            ["class A {", "    void f() {", "        if (x) {"],
        ),
        (
            'class A:\n    def f():\n        x = """\nselect\n""")\n        if x:\n',
            ["class A:", "    def f():", "        if x:"],
        ),
        ("f = glob('a/*.py')\ndef g():\n    # it's '''\n        if x:\n", ["def g():", "        if x:"]),
    ],
)
def test_heads_are_what_the_cursor_is_in(head: str, wanted: list[str]) -> None:
    found = shown(head + FILLING + "            ", 200)
    assert [line for line in found if "fill" not in line and line.strip()] == wanted


def test_a_long_import_keeps_what_is_wanted_and_its_end() -> None:
    text = (
        "from big import (\n"
        + "".join(f"    name_{n},\n" for n in range(70))
        + ")\n"
        + "x = 1\n" * 300
        + "y = name_60("
    )
    found = shown(text, 160)
    assert found[:3] == ["from big import (", "    name_60,", ")"]


def test_the_rest_of_a_long_line_is_cut_and_not_left_out() -> None:
    context = fit(Context("a = ", "b" * 5000 + "\nc\n"), 100, count, size)
    assert 40 < len(context.suffix or "") < 400
    assert set(context.suffix or "") == {"b"}


def test_a_line_of_hardly_more_characters_than_tokens_is_cut_to_its_end() -> None:
    """21 characters of 20 tokens, and room for one: less than a character a token would go on for ever."""

    def dense(texts: Sequence[str]) -> list[int]:
        return [max(len(text) - 1, 0) for text in texts]

    assert _part_of("x" * 21, 1, dense, end=True) == ("", 0)
    assert _part_of("ab" * 21, 10, dense, end=True)[0].endswith("ab")
    assert _part_of("ab" * 21, 10, dense, end=False)[0].startswith("ab")
