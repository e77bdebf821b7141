"""Twins of held-out functions, and files made from others: what is found, and what is no twin."""

import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
from rapidfuzz.distance import Indel

from trainer.data.file_twins import FileTwins
from trainer.data.folding import fold, spell, tokens
from trainer.data.twins import FLOOR, SHORT, Twins

LONG = """def mean(values, default=None):
    total = 0
    for value in values:
        total += value * 2
    return total / len(values) if values else default
"""
RENAMED = """def average(items, fallback=None):
    result = 0
    for item in items:
        result += item * 2
    return result / count(items) if items else fallback
"""


def similar(tmp_path, held_out: list, train: list, threshold: float = 0.8) -> tuple[list[float], list[int]]:
    """(similarity of each that is held out, which of the others are twins); of texts, or of (text, language, part)."""
    twins = Twins(Path(tempfile.mkdtemp(dir=tmp_path), "twins"))
    for item in (*held_out, *train):
        twins.add(*((item, "python") if isinstance(item, str) else item))
    side = np.arange(len(twins)) < len(held_out)
    best, hits = twins.similar(side, ~side, threshold)
    twins.close()
    return best.tolist(), (np.flatnonzero(hits) - len(held_out)).tolist()


@pytest.mark.parametrize(
    ("language", "text", "left"),
    [
        ("python", "def f(a: int = 3, *b: 'x') -> dict[str, int] | None:\n    return a", "def f(a=3, *b):\n return a"),
        ("python", "async def f(x):\n    '''Doc.'''\n    await g(x,)  # why", "def f(x):\n    g(x)"),
        ("python", "n: int = 3\nself.x: A[b] = {a: n}\nz[a:b]", "n = 3\nself.x = {a: n}\nz[a:b]"),
        ("python", "if x: y\nelse: pass\nf = lambda z: z", "if x: y\nelse: pass\nf = lambda z: z"),
        ("python", "f(\"a b\", 'c')", "f('a b', \"c\")"),
        ("python", "f('a b')", 'f("""a b""")'),
        ("python", "f('')", 'f("")'),
        ("typescript", "export function f(a?: Map<string, A[]>, {b}: {b: C} = {}): T {}", "function f(a, {b} = {}) {}"),
        ("typescript", "const f = (x: (a: B) => C): x is D => g<E>(x as any)!.y;", "var f = (x) => g(x).y"),
        ("typescript", "let y: A | B = c ? f(a) : {b: c};", "const y = c ? f(a) : {b: c}"),
        ("typescript", "if (a < b && c > (d)) { e = /* no */ f }", "if (a < b && c > (d)) { e = f }"),
        ("typescript", "switch (a) { case 1: return {a: b, $c} }", "switch (a) { case 1: return {a: b, $c} }"),
        ("rust", "fn f<'a>(x: &'a str) -> char { 'x' } // why", "fn f<'a>(x: &'a str) -> char { 'x' }"),
    ],
)
def test_types_comments_and_layout_are_folded_away(language: str, text: str, left: str) -> None:
    assert tokens(text, language) == tokens(left, language.replace("typescript", "javascript"))
    assert len(tokens(left, language)) >= 4


def test_a_renaming_folds_to_the_same_and_another_use_of_names_does_not() -> None:
    assert fold(LONG, "python") == fold(RENAMED, "python")
    assert fold("f(a, b, a)", "python")[0] != fold("f(a, b, b)", "python")[0]
    assert fold("f(a) + 1", "python") != fold("f(a) + 2", "python")


def test_one_name_more_moves_fewer_recencies_and_two_swapped_fewer_numbers() -> None:
    def alike(one: str, other: str) -> list[float]:
        return list(map(Indel.normalized_similarity, fold(one, "python"), fold(other, "python")))

    numbered, ranked = alike(LONG, LONG.replace("(values", "(extra, values"))
    assert ranked > numbered + 0.1
    numbered, ranked = alike("f(a, b, c, a, b, c, a, b, c, a)", "f(a, b, c, c, b, a, a, b, c, a)")
    assert numbered > ranked


@pytest.mark.parametrize("text", [RENAMED, LONG.replace("2", "3"), LONG.replace("    total", "        total")])
def test_a_twin_is_found_whatever_its_names(tmp_path, text: str) -> None:
    best, hits = similar(tmp_path, [LONG], ["def other():\n    return 1\n", text])
    assert best[0] > 0.9
    assert hits == [1]


def test_the_similarity_is_that_of_the_tokens(tmp_path, monkeypatch) -> None:
    """Against Indel over each pair: no prefilter may lose one that counts."""
    monkeypatch.setattr("trainer.data.twins.CHUNK", 50)
    draw = random.Random(0)
    words = [f"w{number}" for number in range(400)]
    texts = []
    for _ in range(60):
        base = draw.choices(words, k=draw.randrange(3, 120))
        for chance in (0, 0.05, 0.15, 0.3):
            texts.append(" ".join(word if draw.random() > chance else draw.choice(words) for word in base))
    held_out, train = texts[::4], [text for number, text in enumerate(texts) if number % 4]
    exact = np.array([[Indel.normalized_similarity(spell(one), spell(other)) for other in train] for one in held_out])
    best, hits = similar(tmp_path, [(text, "text") for text in held_out], [(text, "text") for text in train])
    expected = np.where(exact.max(axis=1) >= FLOOR, exact.max(axis=1), 0)
    assert best == pytest.approx(expected.tolist(), abs=1e-5)
    assert hits == np.flatnonzero(exact.max(axis=0) >= 0.8 - 1e-6).tolist()
    assert 20 < len(hits) < len(train) - 20


def test_a_setter_is_as_similar_to_all_others_and_no_twin(tmp_path) -> None:
    """Whoever judges by it is told by the first result; what is trained on stays."""
    setter, other = "def __init__(self, size):\n    self.size = size", "def use(self, graph):\n    self.graph = graph"
    assert len(fold(setter, "python")[0]) < SHORT
    assert similar(tmp_path, [setter], [other]) == ([1.0], [])
    assert similar(tmp_path, [setter], [setter.replace("size = ", "_size = ")])[1] == [0]


def test_a_function_with_the_same_body_is_a_twin(tmp_path) -> None:
    head = "def something_else(a, b=1, c=2, *, d=3, e=4, f=5, g=6):\n"
    body = LONG.split("\n", 1)[1]
    assert similar(tmp_path, [(LONG, "python", body)], [(head + body, "python", body)]) == ([1.0], [0])
    assert similar(tmp_path, [LONG], [head + body])[1] == []


def test_only_those_that_are_asked_for_are_compared(tmp_path) -> None:
    twins = Twins(tmp_path / "twins")
    for text in (LONG, "x = 1", RENAMED, LONG, ""):
        twins.add(text, "python")
    texts, among = np.array([0, 1, 0, 0, 1], dtype=bool), np.array([1, 0, 1, 0, 0], dtype=bool)
    best, hits = twins.similar(texts, among, 0.8)
    assert (best.tolist(), hits.tolist()) == ([0, 0], [False] * 5)
    best, hits = twins.similar(among, np.array([0, 0, 0, 1, 1], dtype=bool), 0.8)
    assert (best.tolist(), hits.tolist()) == ([1, 1], [False, False, False, True, False])
    best, hits = twins.similar(texts, np.zeros(5, dtype=bool), 0.8)
    assert (best.tolist(), hits.tolist()) == ([0, 0], [False] * 5)
    twins.close()


TYPESCRIPT = """import {{ util }} from "./util.js";
export interface {0}Options {{ strict: boolean; depth?: number }}
export function load{0}(path: string, options: {0}Options = {{ strict: true }}): Map<string, {0}> {{
  const found: {0}[] = util.readAll(path).filter((item: {0}) => item.kind === "{0}" && !item.hidden);
  if (found.length === 0 && options.strict) throw new Error("no {0} in " + path);
  return new Map(found.map((item) => [item.name, item] as const));
}}
"""
COMPILED = """const util_1 = require("./util.js");
function load{0}(path, options = {{ strict: true }}) {{
    const found = util_1.util.readAll(path).filter((item) => item.kind === "{0}" && !item.hidden);
    if (found.length === 0 && options.strict) throw new Error("no {0} in " + path);
    return new Map(found.map((item) => [item.name, item]));
}}
exports.load{0} = load{0};
"""
OTHER = "function draw(canvas) {\n  canvas.clear();\n  for (const shape of canvas.shapes) shape.paint(canvas);\n}\n" * 2


def of_files(*files: tuple[str, str]) -> FileTwins:
    twins = FileTwins()
    for path, text in files:
        suffix = path.rpartition(".")[2]
        twins.add(path, text, {"ts": "typescript", "py": "python"}.get(suffix, "javascript"))
    return twins


@pytest.mark.parametrize("original", ["src/core/x.ts", "core/x.ts", "core/x.js", "packages/a/x.ts"])
@pytest.mark.parametrize("compiled", ["lib/core/x.js", "core/x.cjs", "es/x.mjs"])
def test_compiled_files_have_an_original(original: str, compiled: str) -> None:
    text = (TYPESCRIPT if original.endswith(".ts") else COMPILED).format("User")
    for twins, expected in (
        (of_files((original, text), (compiled, COMPILED.format("User"))), {1: 0}),
        (of_files((compiled, COMPILED.format("User")), (original, text)), {0: 1}),
    ):
        assert twins.generated() == expected
        assert twins.groups() == [0, 0]


def test_a_name_alone_is_not_enough_nor_is_a_text() -> None:
    twins = of_files(("src/index.ts", TYPESCRIPT.format("User")), ("lib/index.js", OTHER), ("a/b.js", OTHER))
    assert (twins.generated(), twins.groups()) == ({}, [0, 1, 2])


def test_all_versions_come_from_the_one_that_was_written() -> None:
    compiled = COMPILED.format("User")
    twins = of_files(("x.cjs", compiled), ("x.mjs", compiled), ("x.js", compiled), ("x.ts", TYPESCRIPT.format("User")))
    assert twins.generated() == {0: 3, 1: 3, 2: 3}


ASYNC = """class AsyncClient:
    async def __aenter__(self):
        await self.transport.aconnect(self.address, timeout=self.timeout)
        return self

    async def fetch(self, path, retries=3):
        async with self.pool.aacquire() as connection:
            reply = await connection.send(path, retries)
            return reply.body if reply.status == 200 else None
"""
SYNC = ASYNC.replace("async ", "").replace("await ", "").replace("AsyncClient", "Client").replace("__aenter", "__enter")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a/_async/client.py", "a/_sync/client.py"),
        ("a/asyncio/client.py", "a/client.py"),
        ("test_async_client.py", "test_client.py"),
        ("client_async.py", "client.py"),
        ("aio/client.py", "client.py"),
    ],
)
def test_the_synchronous_version_stays_and_shares_a_side(one: str, other: str) -> None:
    twins = of_files(("z.py", "pass"), (one, ASYNC), ("y.py", SYNC), (other, SYNC))
    assert (twins.generated(), twins.groups()) == ({}, [0, 1, 2, 1])
    assert of_files((one, ASYNC), (other, "import os\n\n\ndef main():\n    os.exit(3)\n")).groups() == [0, 1]


def test_files_without_text_have_no_twin() -> None:
    twins = of_files(("a/x.ts", ""), ("a/x.js", ""), ("a/x.cjs", "f()"))
    assert (twins.generated(), twins.groups()) == ({}, [0, 1, 2])
