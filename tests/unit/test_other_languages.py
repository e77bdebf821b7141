"""What is found in files of all languages but Python, by the same reader."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.data import functions_of
from trainer.data.languages import LANGUAGES, NAMES, language_of, parses, read
from trainer.evaluation.truncation import first_function


@dataclass(frozen=True)
class Sample:
    """A file, and what is to be found in it."""

    source: str
    functions: tuple[tuple[str, str], ...] = ()  # (head, body) at the left margin
    documented: tuple[bool, ...] = ()
    runs: tuple[str, ...] = ()
    expressions: tuple[str, ...] = ()  # some of them


SAMPLES = {
    "javascript": Sample(
        """\
import { x } from "x";
const limit = 10;
const options = {
  size: compute(limit, 2),
};

/** Adds. */
export async function add(a, b) {
  // why
  return a + b;
}

class A extends B {
  count = 0;
  // Doubles.
  twice = (y) => {
    return 2 * y;
  };

  plain(x) {
    if (x > limit) { return x[limit]; }
  }
}

// One line: no body of its own.
const one = (x) => { return x; };
describe("a", () => {
  expect(one(1)).toBe(1);
});
""",
        (
            ("/** Adds. */\nexport async function add(a, b) {\n", "  // why\n  return a + b;\n}\n"),
            ("// Doubles.\ntwice = (y) => {\n", "  return 2 * y;\n};\n"),
            ("plain(x) {\n", "  if (x > limit) { return x[limit]; }\n}\n"),
        ),
        (True, True, False),
        (
            "const limit = 10;\nconst options = {\n  size: compute(limit, 2),\n};\n",
            "  size: compute(limit, 2),\n",
            "  count = 0;\n",
            'const one = (x) => { return x; };\ndescribe("a", () => {\n  expect(one(1)).toBe(1);\n});\n',
            "  expect(one(1)).toBe(1);\n",
        ),
        ("compute(limit, 2)", "limit, 2", "limit", "a + b", "x > limit", "x[limit]", "expect(one(1)).toBe(1)"),
    ),
    "typescript": Sample(
        """\
import { x } from "x";
interface I {
  a: number;
  b: string;
}
export type T = {
  c: string;
};
enum E {
  A,
  B,
}

@Injectable()
export class A<T> {
  private x = make<number>(3);
  @Input() y: string;

  /** Doc. */
  @Output()
  public foo(x: number): string {
    return String(x);
  }
  @Same() bar(): void {
    this.foo(this.x);
  }
  abstract baz(): void;
}
namespace N {
  export const z = 100;
}
""",
        (
            ("/** Doc. */\n@Output()\npublic foo(x: number): string {\n", "  return String(x);\n}\n"),
            ("@Same() bar(): void {\n", "  this.foo(this.x);\n}\n"),
        ),
        (True, False),
        (
            "  a: number;\n  b: string;\n",
            "  c: string;\n",
            "  A,\n  B,\n",
            "  private x = make<number>(3);\n  @Input() y: string;\n",
            "  abstract baz(): void;\n",
            "  export const z = 100;\n",
        ),
        ("make<number>(3)", "String(x)", "this.foo(this.x)", "this.x", "100"),
    ),
    "tsx": Sample(
        """\
const size: number = 10;

// A button.
export const Button = ({ label }: Props) => {
  return <button size={fit(size)}>{label}</button>;
};
""",
        (
            (
                "// A button.\nexport const Button = ({ label }: Props) => {\n",
                "  return <button size={fit(size)}>{label}</button>;\n};\n",
            ),
        ),
        (True,),
        ("const size: number = 10;\n",),
        ("fit(size)", "size"),
    ),
    "go": Sample(
        """\
package x

import "fmt"

const Limit = 10
var size = compute(Limit, 2)

type R struct {
\tcount int
\tname  string
}
type I interface {
\tFoo() int
}

// Foo does.
func (r *R) Foo(a int) (int, error) {
\tif a > Limit {
\t\treturn r.get(a)[0], nil
\t}
\treturn 0, nil
}
""",
        (
            (
                "// Foo does.\nfunc (r *R) Foo(a int) (int, error) {\n",
                "\tif a > Limit {\n\t\treturn r.get(a)[0], nil\n\t}\n\treturn 0, nil\n}\n",
            ),
        ),
        (True,),
        ("const Limit = 10\nvar size = compute(Limit, 2)\n", "\tcount int\n\tname  string\n", "\tFoo() int\n"),
        ("compute(Limit, 2)", "Limit, 2", "Limit", "a > Limit", "r.get(a)[0]", "r.get(a)", "0, nil"),
    ),
    "java": Sample(
        """\
package a.b;
import java.util.List;

public class A {
  private int x = make(3, 4);
  private List<String> names;

  /** Doc. */
  @Override
  public int foo(int a)
      throws IOException {
    if (a > this.x) { return names[x]; }
    return new Foo(abc).get();
  }
}
enum E {
  A,
  B
}
""",
        (
            (
                "/** Doc. */\n@Override\npublic int foo(int a)\n    throws IOException {\n",
                "  if (a > this.x) { return names[x]; }\n  return new Foo(abc).get();\n}\n",
            ),
        ),
        (True,),
        ("  private int x = make(3, 4);\n  private List<String> names;\n", "  A,\n  B\n"),
        ("make(3, 4)", "3, 4", "a > this.x", "names[x]", "new Foo(abc).get()", "new Foo(abc)", "abc"),
    ),
    "rust": Sample(
        """\
use std::fmt;
const LIMIT: u32 = max(3, 4);

#[derive(Debug)]
pub struct A {
    #[serde(default)]
    x: u32,
}

impl A {
    /// Doc.
    #[inline]
    pub fn foo(&self) -> u32 {
        let x = self.get(1)?;
        println!("{}", x);
        if x > LIMIT { return list[x]; }
        x + 1
    }

    fn later(&self) {
        todo!()
    }
}
""",
        (
            (
                "/// Doc.\n#[inline]\npub fn foo(&self) -> u32 {\n",
                '    let x = self.get(1)?;\n    println!("{}", x);\n'
                "    if x > LIMIT { return list[x]; }\n    x + 1\n}\n",
            ),
        ),
        (True,),
        ("const LIMIT: u32 = max(3, 4);\n", "    #[serde(default)]\n    x: u32,\n"),
        ("max(3, 4)", "self.get(1)?", "self.get(1)", 'println!("{}", x)', '"{}", x', "x > LIMIT", "list[x]"),
    ),
    "c": Sample(
        """\
#ifndef A_H
#include <stdio.h>
static int limit = compute(3, 4);

struct foo {
  int a;
  char *b;
};
enum e {
  A = 100,
  B,
};

/* Doc. */
int add(int a, int b)
{
  if (a > limit) { return table[a]; }
  return add(a + b, limit);
}
#endif
""",
        (
            (
                "/* Doc. */\nint add(int a, int b)\n{\n",
                "  if (a > limit) { return table[a]; }\n  return add(a + b, limit);\n}\n",
            ),
        ),
        (True,),
        ("static int limit = compute(3, 4);\n", "  int a;\n  char *b;\n", "  A = 100,\n  B,\n"),
        ("compute(3, 4)", "3, 4", "100", "a > limit", "table[a]", "add(a + b, limit)", "a + b", "limit"),
    ),
    "cpp": Sample(
        """\
#include <vector>
using std::vector;
namespace a {
const int limit = max(3, 4);

// Doc.
template <typename T>
class A : public B {
 public:
  A() : x_(1) {
    x_ = grow(x_);
  }
 private:
  int x_;
  int y_ = 100;
};

/** Doc. */
template <typename T>
T foo(T a) {
  while (a < limit) a += table[a];
  return a;
}
}
""",
        (
            ("A() : x_(1) {\n", "  x_ = grow(x_);\n}\n"),
            (
                "/** Doc. */\ntemplate <typename T>\nT foo(T a) {\n",
                "  while (a < limit) a += table[a];\n  return a;\n}\n",
            ),
        ),
        (False, True),
        ("const int limit = max(3, 4);\n", "  int x_;\n  int y_ = 100;\n"),
        ("max(3, 4)", "grow(x_)", "100", "a < limit", "table[a]"),
    ),
    "csharp": Sample(
        """\
using System;

namespace N
{
    public class A : B
    {
        private int x = Max(3, 4);
        public string Name { get; set; }

        /// <summary>Doc.</summary>
        [Test]
        public int Foo(int a)
        {
            if (a > x) return table[a];
            return new Foo(abc).Get();
        }

        public void Later()
        {
            throw new NotImplementedException();
        }
    }
}
""",
        (
            (
                "/// <summary>Doc.</summary>\n[Test]\npublic int Foo(int a)\n{\n",
                "    if (a > x) return table[a];\n    return new Foo(abc).Get();\n}\n",
            ),
        ),
        (True,),
        ("        private int x = Max(3, 4);\n        public string Name { get; set; }\n",),
        ("Max(3, 4)", "a > x", "table[a]", "new Foo(abc).Get()", "new Foo(abc)", "abc"),
    ),
    "kotlin": Sample(
        """\
package a.b
import c.d
const val LIMIT = 100
val names = listOf("a", "b")

/** Doc. */
@Test
fun foo(a: Int): Int {
    if (a > LIMIT) return names[a]
    return a + bar(a, LIMIT)
}
fun one() = 3

class A(val x: Int) : B() {
    val y = 3

    override fun run() {
        go { it + 1 }
    }
    fun later() {
        TODO("not yet")
    }
}
""",
        (
            (
                "/** Doc. */\n@Test\nfun foo(a: Int): Int {\n",
                "    if (a > LIMIT) return names[a]\n    return a + bar(a, LIMIT)\n}\n",
            ),
            ("override fun run() {\n", "    go { it + 1 }\n}\n"),
        ),
        (True, False),
        ('const val LIMIT = 100\nval names = listOf("a", "b")\n', "fun one() = 3\n", "    val y = 3\n"),
        ('listOf("a", "b")', "100", "a > LIMIT", "names[a]", "a + bar(a, LIMIT)", "a, LIMIT"),
    ),
    "php": Sample(
        """\
<?php
namespace A;
use B\\C;
require_once 'x.php';
const LIMIT = 100;
$names = make('a', 2);

/** Doc. */
function foo(int $a): int
{
    if ($a > LIMIT) { return $names[$a]; }
    return $this->bar($a) + A::baz(LIMIT);
}

class A extends B
{
    private $x = [1, 2];

    public function f()
    {
        return new C($this);
    }
}
""",
        (
            (
                "/** Doc. */\nfunction foo(int $a): int\n{\n",
                "    if ($a > LIMIT) { return $names[$a]; }\n    return $this->bar($a) + A::baz(LIMIT);\n}\n",
            ),
            ("public function f()\n{\n", "    return new C($this);\n}\n"),
        ),
        (True, False),
        ("const LIMIT = 100;\n$names = make('a', 2);\n", "    private $x = [1, 2];\n"),
        (
            "make('a', 2)",
            "$a > LIMIT",
            "$names[$a]",
            "$this->bar($a)",
            "A::baz(LIMIT)",
            "LIMIT",
            "[1, 2]",
            "new C($this)",
        ),
    ),
    "ruby": Sample(
        """\
require 'a'
LIMIT = 100
NAMES = make('a', 2)

module M
  class A < B
    attr_reader :count

    # Doc.
    def foo(a, b = 1)
      return names[a] if a > LIMIT
      @x = a.bar(b)
    end

    def self.baz
      if LIMIT == 1
        b
      end
    end
  end
end

describe "a" do
  x = <<~TEXT
    hello
  TEXT
end
""",
        (
            (
                "# Doc.\ndef foo(a, b = 1)\n",
                "  return names[a] if a > LIMIT\n  @x = a.bar(b)\nend\n",
            ),
            ("def self.baz\n", "  if LIMIT == 1\n    b\n  end\nend\n"),
        ),
        (True, False),
        (
            "LIMIT = 100\nNAMES = make('a', 2)\n",
            "    attr_reader :count\n",
            'describe "a" do\n  x = <<~TEXT\n    hello\n  TEXT\nend\n',
            "  x = <<~TEXT\n    hello\n  TEXT\n",
        ),
        ("100", "make('a', 2)", "'a', 2", "names[a]", "a > LIMIT", "a.bar(b)", "LIMIT == 1"),
    ),
    "swift": Sample(
        """\
import A
let limit = 100
let names = make("a", 2)

/// Doc.
@objc
func foo(_ a: Int) -> Int {
    if a > limit { return names[a] }
    guard let y = found else { return 1 }
    return bar(a, with: y)
}

struct S: T {
    let x: Int
    var y = 300

    init(a: Int) {
        self.x = a + 1
    }
}
""",
        (
            (
                "/// Doc.\n@objc\nfunc foo(_ a: Int) -> Int {\n",
                "    if a > limit { return names[a] }\n    guard let y = found else { return 1 }\n"
                "    return bar(a, with: y)\n}\n",
            ),
            ("init(a: Int) {\n", "    self.x = a + 1\n}\n"),
        ),
        (True, False),
        ('let limit = 100\nlet names = make("a", 2)\n', "    let x: Int\n    var y = 300\n"),
        ("100", 'make("a", 2)', "a > limit", "names[a]", "found", "bar(a, with: y)", "a, with: y", "a + 1"),
    ),
    "sql": Sample(
        """\
-- Doc.
CREATE TABLE a (
  id INT PRIMARY KEY,
  b TEXT
);
INSERT INTO a VALUES (1, 'xyz');

SELECT a, count(b) FROM c WHERE a > 200 GROUP BY a;
UPDATE a SET b = 'foo' WHERE id = 3;
""",
        runs=(
            "CREATE TABLE a (\n  id INT PRIMARY KEY,\n  b TEXT\n);\nINSERT INTO a VALUES (1, 'xyz');\n",
            "  id INT PRIMARY KEY,\n  b TEXT\n",
            "SELECT a, count(b) FROM c WHERE a > 200 GROUP BY a;\nUPDATE a SET b = 'foo' WHERE id = 3;\n",
        ),
        expressions=("count(b)", "a > 200", "'foo'", "id = 3"),
    ),
    "shell": Sample(
        """\
#!/bin/bash
source a.sh
LIMIT=100
here=$(pwd)

# Doc.
foo() {
  local a="$1"
  if [ "$a" -gt "$LIMIT" ]; then
    echo "$(bar "$a")"
  fi
}

function baz
{
  cat <<EOF
a
EOF
}
""",
        (
            (
                "# Doc.\nfoo() {\n",
                '  local a="$1"\n  if [ "$a" -gt "$LIMIT" ]; then\n    echo "$(bar "$a")"\n  fi\n}\n',
            ),
            ("function baz\n{\n", "  cat <<EOF\na\nEOF\n}\n"),
        ),
        (True, False),
        ("LIMIT=100\nhere=$(pwd)\n",),
        ("100", "$(pwd)", '"$1"', '[ "$a" -gt "$LIMIT" ]', 'echo "$(bar "$a")"', 'bar "$a"'),
    ),
}
OTHERS = [name for name in NAMES if name != "python"]


def lines_of(source: str, start: int, end: int) -> str:
    return "".join(f"{line}\n" for line in source.split("\n")[start:end])


@pytest.mark.parametrize("language", OTHERS)
def test_functions_are_split_behind_their_heads(language: str) -> None:
    sample = SAMPLES[language]
    assert functions_of(sample.source, language) == list(sample.functions)
    code = read(sample.source, language)
    assert code is not None
    assert tuple(item.documented for item in code.functions) == sample.documented


@pytest.mark.parametrize("language", OTHERS)
def test_files_and_moved_functions_parse(language: str) -> None:
    sample = SAMPLES[language]
    assert parses(sample.source, language)
    assert all(parses(head + body, language) for head, body in sample.functions)
    assert not parses("}}} ]] %% <<\n", language)
    assert not any(parses(f"{head}{body}))\n", language) for head, body in sample.functions)


@pytest.mark.parametrize("language", OTHERS)
def test_runs_outside_functions_are_members_that_stand_together(language: str) -> None:
    sample = SAMPLES[language]
    code = read(sample.source, language)
    assert code is not None
    assert [lines_of(sample.source, start, end) for start, end in code.runs] == list(sample.runs)


@pytest.mark.parametrize("language", OTHERS)
def test_expressions_are_where_they_are(language: str) -> None:
    sample = SAMPLES[language]
    for text in (sample.source, sample.source.replace("Doc", "Dö😀c")):
        code = read(text, language)
        assert code is not None
        found = [text[start:end] for start, end in code.expressions]
        assert set(sample.expressions) <= set(found)
        assert all(3 <= len(item) <= 200 and item == item.strip() for item in found)
        assert code.expressions == sorted(set(code.expressions))


@pytest.mark.parametrize("language", OTHERS)
def test_a_completion_is_cut_where_its_function_has_ended(language: str) -> None:
    for _, body in SAMPLES[language].functions:
        assert first_function(f"{body}\nmore();\n", language) == body
    if language == "sql":
        assert first_function("  id INT\n); -- all\nSELECT 1;\n", language) == "  id INT\n); -- all\n"


@pytest.mark.parametrize("language", OTHERS)
def test_comment_begins_a_comment(language: str) -> None:
    comment = f"{LANGUAGES[language].comment} path/to/file\n"
    sample = SAMPLES[language].source
    opening = LANGUAGES[language].opening
    assert parses(opening + comment + sample.removeprefix(opening), language)
    assert parses(comment, language)


@pytest.mark.parametrize(
    ("path", "language"),
    [
        *(("a/b.h", "c"), ("b.hpp", "cpp"), ("b.CC", "cpp"), ("b.cs", "csharp"), ("b.kts", "kotlin")),
        *(("b.rb", "ruby"), ("b.bash", "shell"), ("b.sql", "sql"), ("Makefile", None), ("b.txt", None)),
    ],
)
def test_the_name_tells_the_language(path: str, language: str | None) -> None:
    assert language_of(path) == language


@pytest.mark.parametrize(
    ("language", "source"),
    [
        ("javascript", "// A.\nconst a = () => {\n  return 1;\n}, b = 2;\n"),
        ("java", "class A {\n  // A.\n  int foo(int x) {\n    return x;\n  } }\n"),
        ("javascript", "class A { foo(x) {\n  return x;\n} }\n"),
        ("rust", "impl A { fn foo() {\n    bar();\n} }\n"),
        ("ruby", "def foo; bar\n  baz; end\n"),
    ],
)
def test_function_that_shares_its_lines_is_left_out(language: str, source: str) -> None:
    assert functions_of(source, language) == []


def test_comment_behind_a_brace_shares_nothing() -> None:
    source = "func f() int { // why\n\treturn 1\n} // end\n"
    assert functions_of(source, "go") == [("func f() int { // why\n", "\treturn 1\n} // end\n")]


@pytest.mark.parametrize(
    "broken",
    [
        *("function b(a) {\n  return a +;\n}\n\n", "function b(a {\n  return a;\n}\n\n", "}\n\n", "x = 'abc\n\n"),
        "function b(a) {\n  if (a) {\n  return a;\n}\n\n",
    ],
)
def test_what_does_not_parse_costs_its_file_no_other_function(broken: str) -> None:
    good = "// Doc.\nfunction good(a) {\n  return a;\n}\n\n"
    expected = ("// Doc.\nfunction good(a) {\n", "  return a;\n}\n")
    assert functions_of(good + broken + good, "javascript") == [expected, expected]


@pytest.mark.parametrize("language", [name for name in OTHERS if name != "php"])  # all is text there, up to `<?php`
def test_file_that_does_not_parse_is_reported_as_such(language: str) -> None:
    assert read("}}} ]] %% <<\n" * 5, language) is None


@pytest.mark.parametrize("language", NAMES)
def test_deep_nesting_is_no_crash(language: str) -> None:
    for text in ("[" * 3000 + "]" * 3000, "(" * 3000, "{" * 3000, "f(" * 3000 + ")" * 3000):
        read(text, language)


PIECES = st.lists(
    st.one_of(
        st.sampled_from([line for sample in SAMPLES.values() for line in sample.source.splitlines(keepends=True)]),
        st.text(max_size=12),
    ),
    max_size=30,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(st.one_of(PIECES, st.text(st.characters())), st.sampled_from(NAMES))
def test_whatever_the_text_spans_lie_within_it(text: str, language: str) -> None:
    code = read(text, language)
    parses(text, language)
    if code is None:
        return
    count = len(text.split("\n"))
    for item in code.functions:
        assert 0 <= item.start < item.body < item.end <= count
        assert all(item.body <= start < end <= item.end for start, end in item.runs)
    assert all(0 <= start < end <= count for start, end in [*code.runs, *code.quoted])
    assert all(0 <= start < end <= len(text) for start, end in code.expressions)


@pytest.mark.parametrize(
    ("language", "text"),
    [("javascript", "/* a\n" * 20_000), ("shell", "This is prose, not (code): at all; what of it?\n" * 20_000)],
)
def test_text_that_a_grammar_goes_over_again_and_again_does_not_parse(language: str, text: str) -> None:
    assert read(text, language) is None  # it would take minutes
    assert not parses(text, language)
