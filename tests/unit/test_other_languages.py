"""What becomes of the functions of JavaScript, TypeScript, Go, Java and Rust files."""

import pytest

from trainer.data.kinds import example_of
from trainer.data.languages import NAMES, parses, read_functions

ONLY = {
    kind: {"function": 0.0, "fim": 0.0, "next_block": 0.0} | {kind: 1.0} for kind in ("function", "fim", "next_block")
}


def examples(source: str, language: str, kind: str = "function", require_docstring: bool = True, context: int = 1000):
    found = read_functions(source, language)
    assert found is not None
    lines = source.removesuffix("\n").split("\n")
    made = [example_of(item, lines, language, "x", ONLY[kind], require_docstring, context) for item in found]
    return [(item.prompt, item.completion) for item in made if item is not None]


JAVASCRIPT = """\
/** Adds. */
export async function add(a, b) {
  // why
  return a + b;
}

class A {
  // Doubles.
  twice = (y) => {
    return 2 * y;
  };

  plain(x) {
    return x;
  }
}

// One line: no body of its own.
const one = (x) => { return x; };
"""
TYPESCRIPT = """\
class A<T> {
  /** Doc. */
  @Input()
  public foo(x: number): string {
    return String(x);
  }
  abstract bar(): void;
}
"""
TSX = """\
// A button.
export const Button = ({ label }: Props) => {
  return <button>{label}</button>;
};
"""
GO = """\
package x

// Foo does.
func (r *R) Foo(a int) (int, error) {
\tif a > 1 {
\t\treturn a, nil
\t}
\treturn 0, nil
}
"""
JAVA = """\
class A {
  /** Doc. */
  @Override
  public int foo(int a)
      throws IOException {
    int b = a;
    return b;
  }
}
"""
RUST = """\
impl A {
    /// Doc.
    #[inline]
    pub fn foo(&self) -> u32 {
        let x = 1;
        x + 1
    }
}
"""


@pytest.mark.parametrize(
    ("language", "source", "expected"),
    [
        (
            "javascript",
            JAVASCRIPT,
            [
                ("/** Adds. */\nexport async function add(a, b) {\n", "  // why\n  return a + b;\n}\n"),
                ("// Doubles.\ntwice = (y) => {\n", "  return 2 * y;\n};\n"),
            ],
        ),
        (
            "typescript",
            TYPESCRIPT,
            [("/** Doc. */\n@Input()\npublic foo(x: number): string {\n", "  return String(x);\n}\n")],
        ),
        (
            "tsx",
            TSX,
            [
                (
                    "// A button.\nexport const Button = ({ label }: Props) => {\n",
                    "  return <button>{label}</button>;\n};\n",
                )
            ],
        ),
        (
            "go",
            GO,
            [
                (
                    "// Foo does.\nfunc (r *R) Foo(a int) (int, error) {\n",
                    "\tif a > 1 {\n\t\treturn a, nil\n\t}\n\treturn 0, nil\n}\n",
                )
            ],
        ),
        (
            "java",
            JAVA,
            [
                (
                    "/** Doc. */\n@Override\npublic int foo(int a)\n    throws IOException {\n",
                    "  int b = a;\n  return b;\n}\n",
                )
            ],
        ),
        (
            "rust",
            RUST,
            [("/// Doc.\n#[inline]\npub fn foo(&self) -> u32 {\n", "    let x = 1;\n    x + 1\n}\n")],
        ),
    ],
)
def test_function_is_split_behind_its_opening_brace(language: str, source: str, expected) -> None:
    found = examples(source, language)
    assert found == expected
    assert all(parses(prompt + completion, language) for prompt, completion in found)


def test_without_a_comment_only_where_wanted() -> None:
    assert len(examples(JAVASCRIPT, "javascript", require_docstring=False)) == 3


def test_a_gap_lies_in_its_file() -> None:
    [(prompt, middle)] = examples(GO, "go", "fim")
    prefix, _, rest = prompt.removeprefix("<fim_prefix>").partition("<fim_suffix>")
    suffix = rest.removesuffix("<fim_middle>")
    assert prefix + middle + suffix == GO
    assert middle in ("\tif a > 1 {\n\t\treturn a, nil\n\t}\n\treturn 0, nil\n", "\t\treturn a, nil\n")


def test_the_next_block_follows_what_is_before_it() -> None:
    [(prompt, completion)] = examples(RUST, "rust", "next_block")
    assert RUST.startswith(prompt + completion)


def test_context_is_no_longer_than_it_may_be() -> None:
    [(prompt, completion)] = examples(GO, "go", "next_block", context=60)
    assert len(prompt + completion) <= 60
    assert GO.partition(completion)[0].endswith(prompt)


@pytest.mark.parametrize("language", [name for name in NAMES if name != "python"])
def test_nonsense_gives_nothing(language: str) -> None:
    assert read_functions("}}} ]] %% <<\n" * 5, language) in (None, [])
    assert not parses("}}} ]] %% <<\n", language)


@pytest.mark.parametrize(
    ("language", "source"),
    [
        ("javascript", "// A.\nconst a = () => {\n  return 1;\n}, b = 2;\n"),
        ("java", "class A {\n  // A.\n  int foo(int x) {\n    return x;\n  } }\n"),
        ("javascript", "class A { foo(x) {\n  return x;\n} }\n"),
        ("rust", "impl A { fn foo() {\n    bar();\n} }\n"),
    ],
)
def test_function_that_shares_its_lines_is_left_out(language: str, source: str) -> None:
    assert examples(source, language, require_docstring=False) == []


def test_comment_behind_a_brace_shares_nothing() -> None:
    source = "func f() int { // why\n\treturn 1\n} // end\n"
    assert examples(source, "go", require_docstring=False) == [("func f() int { // why\n", "\treturn 1\n} // end\n")]


def test_function_whose_strings_would_change_is_not_moved() -> None:
    source = "class A {\n  // A.\n  f() {\n    return `\n      x`;\n  }\n}\n"
    assert examples(source, "javascript") == []
    assert len(examples(source, "javascript", "next_block")) == 1
