"""Functions, runs of statements, expressions and heads in a file of any language, by tree-sitter.

One walk over the tree, on a stack of our own: code may be nested as deep as it is long. What does not parse is left
out with the function or statement that it is in, and the rest of the file is found.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from trainer.data.languages.code import Code, Function
from trainer.data.languages.expressions import spans_in
from trainer.data.languages.record import Language, parse

UNNAMED = {"arrow_function", "function_expression", "generator_function"}
NAMING = {"variable_declarator", "assignment_expression", "field_definition", "public_field_definition", "pair"}
# What a function or class is a part of that begins on its line, such as `export const f = …`.
AROUND = NAMING | {
    *("lexical_declaration", "variable_declaration", "expression_statement", "type_definition", "declaration"),
    "ambient_declaration",
}
AROUND_FROM_ABOVE = {"decorated_definition", "template_declaration", "export_statement"}  # or on a line before it
ATTRIBUTES = {"attribute_item", "inner_attribute_item", "decorator", "attribute_list"}
SKIPPED = ATTRIBUTES - {"decorator"}  # nothing in them is looked at: an attribute's arguments are no code
LISTS = {"statement_list", "statements", "enum_body_declarations"}  # in a block, all that is in it
# Between statements, and none.
BETWEEN = {"php_tag", "text_interpolation", "access_specifier", "marginalia"}
DEPTH = 3  # from a function or class to its body at most, as in Go's type_declaration, type_spec, struct_type
QUOTED = re.compile(r"comment|string|heredoc(_body)?$|nowdoc|marginalia")
NOT_QUOTED = {"concatenated_string", "chained_string"}  # several that stand together
CONSTANTS = {"string", "concatenated_string", "ellipsis", "integer", "float", "true", "false", "none"}
STUB = re.compile(
    rb"(pass|\.\.\.|raise NotImplementedError\b.*|(todo|unimplemented)!\(.*\)|TODO\(.*\)|fatalError\(.*\)"
    rb"|throw (new )?(UnsupportedOperation|NotImplemented|NotSupported)\w*\(.*\)"
    rb"|panic\(\"(not implemented|TODO).*\))?;?",
    re.DOTALL,
)
COMMENTS = (b"#", b"//", b"/*", b"--")
MIN_EXPRESSION, MAX_EXPRESSION = 3, 200  # characters


class Place(NamedTuple):
    """A node on the way down."""

    node: Any
    above: "Place | None"
    number: int  # among the children of the one above
    function: "Open | None"  # that it is in


class Open:
    """A function that is being read; a stub or one that shares its lines has no `span`: nothing in it is wanted."""

    def __init__(self, documented: bool) -> None:
        self.span: tuple[int, int, int] | None = None
        self.documented = documented
        self.runs: set[tuple[int, int]] = set()


class Member(NamedTuple):
    """A statement or member of a block, by lines; the end is exclusive."""

    start: int
    end: int
    is_import: bool


Members = list[Member | None]  # None: something between that belongs to no run


def read(text: str, language: Language) -> Code | None:
    """What is in a file; None where it does not parse."""
    parsed = parse(language.grammar, text)
    if parsed is None:
        return None
    root, data = parsed
    walk = _Walk(data, language)
    walk.down(root)
    functions = [
        Function(*item.span, item.documented, tuple(sorted(item.runs)))
        for item in walk.functions
        if item.span is not None
    ]
    runs = sorted({run for block in walk.blocks for run in walk.runs(block, outside=True)})
    if root.has_error and not functions and (not runs or walk.wrong * 2 > len(data)):
        return None
    expressions = _in_characters(text, data, walk.expressions)
    return Code(functions, runs, expressions, sorted(set(walk.quoted)))


class _Walk:
    """One walk over a file's tree, and what it has found."""

    def __init__(self, data: bytes, language: Language) -> None:
        self.data, self.language = data, language
        self.lines = data.split(b"\n")
        self.blank = [0, *accumulate(not line.strip() for line in self.lines)]  # blank lines before each line
        self.functions: list[Open] = []
        self.blocks: list[Members] = []  # outside functions
        self.expressions: list[tuple[int, int]] = []  # bytes
        self.quoted: list[tuple[int, int]] = []
        self.tops: list[int] = []  # the lines on which functions and classes with a head begin, in order
        self.wrong = self.wrong_to = 0  # bytes that do not parse, and behind the last of them
        self.imports: set[int] = set()  # first bytes of those that are told by their first word

    def down(self, root: Any) -> None:
        """Through the whole tree, parents before children."""
        language = self.language
        heads = language.functions | language.classes
        stack = [Place(root, None, 0, None)]
        while stack:
            place = stack.pop()
            node, function = place.node, place.function
            kind = node.type
            if _is_quoted(kind):
                self._quote(node)
            if _is_comment(kind) or kind in SKIPPED or kind in language.imports or node.start_byte in self.imports:
                continue
            children = node.children
            if not children:
                continue
            if kind == "ERROR" and node.start_byte >= self.wrong_to and place.above is not None:
                self.wrong_to = node.end_byte
                self.wrong += self.wrong_to - node.start_byte
            if kind in heads:
                function = self._head(place, kind)
            if kind in language.blocks:
                self._block(node, function)
            if self._is_docstring(node, kind):
                self._quote(children[0])
                continue
            if not node.has_error:
                self.expressions += spans_in(node, kind, children)
            stack += [
                Place(child, place, index, function)
                for index, child in reversed(list(enumerate(children)))
                if child.is_named
            ]

    def runs(self, members: Members, outside: bool = False) -> Iterator[tuple[int, int]]:
        """(start, end) of members that stand together, without imports at either end.

        Outside functions, whatever has a function or class in it is no part of a run: that has a head of its own.
        """
        group: list[Member] = []
        for member in [*members, None]:
            if member and outside and bisect_left(self.tops, member.start) < bisect_left(self.tops, member.end):
                member = None
            if group and not (member and self._adjoin(group[-1], member)):
                wanted = [number for number, item in enumerate(group) if not item.is_import]
                if wanted:
                    yield group[wanted[0]].start, group[wanted[-1]].end
                group = []
            if member:
                group.append(member)

    def _adjoin(self, one: Member, other: Member) -> bool:
        return one.end <= other.start and self.blank[one.end] == self.blank[other.start]

    def _block(self, block: Any, function: Open | None) -> None:
        """Note the statements of a block that share no line with anything else."""
        members: Members = []
        attribute: int | None = None  # the line of the first one right above
        for child in _statements(block):
            kind = child.type
            if _is_comment(kind) or kind in BETWEEN or self._is_docstring(child, kind):
                continue
            if kind in ATTRIBUTES:
                if attribute is None and self._starts_its_line(child):
                    attribute = _row(child)
            elif kind == "heredoc_body":  # begins at the end of its statement's line
                if members and members[-1]:
                    members[-1] = members[-1]._replace(end=_end_row(child) + 1)
            elif (
                (self._starts_its_line(child) or attribute == _row(child))
                and self._ends_its_line(child)
                and not child.has_error
            ):
                start = _row(child) if attribute is None else attribute
                members.append(Member(start, _end_row(child) + 1, self._is_import(child)))
                attribute = None
            else:
                members.append(None)
                attribute = None
        if function is None:
            self.blocks.append(members)
        else:
            function.runs.update(self.runs(members))

    def _head(self, place: Place, kind: str) -> Open | None:
        """Note a function's or class's head, and a function. Gives the function that what is in it belongs to."""
        node, above, body = place.node, place.above, self._body(place.node)
        unnamed = kind in UNNAMED and (above is None or above.node.type not in NAMING)
        if body is None or unnamed:
            return place.function
        opening, end = self._opening(node, body), _end_row(node)
        if end <= opening:
            return place.function
        outer, start, documented = self._top(place)
        self.tops.append(_row(node))
        if place.function is not None or kind in self.language.classes:
            return place.function
        if node.has_error:
            return None  # what is in it may still be good: where a brace is missing, the rest of the file
        function = Open(documented)
        statements = [child for child in _statements(body) if not _is_comment(child.type)]
        if statements and self._is_docstring(statements[0], statements[0].type):
            function.documented, opening = True, _end_row(statements.pop(0))
        if (
            statements
            and _row(statements[0]) > opening
            and self._starts_its_line(outer)
            and self._ends_alone(node)
            and not all(self._is_stub(child) for child in statements)
        ):
            function.span = (start, opening + 1, end + 1)
            self.functions.append(function)
        return function

    def _body(self, node: Any) -> Any:
        """The block at the end of a function or class, or None."""
        for _ in range(DEPTH):
            named = [child for child in node.named_children if not _is_comment(child.type)]
            if not named:
                return None
            node = named[-1]
            if node.type in self.language.blocks:
                return node
        return None

    def _opening(self, node: Any, body: Any) -> int:
        """The last line of the head: that of the brace, or of what comes before the body."""
        for child in body.children[:3]:
            if child.type == "{":
                return _row(child)
        before = [child for child in node.children if child.end_byte <= body.start_byte and not _is_comment(child.type)]
        return _end_row(before[-1]) if before else _row(node)

    def _top(self, place: Place) -> tuple[Any, int, bool]:
        """What a function or class is the main part of; the first line with its comments; whether it has any."""
        while place.above is not None and (
            place.above.node.type in AROUND_FROM_ABOVE
            or (place.above.node.type in AROUND and _row(place.above.node) == _row(place.node))
        ):
            place = place.above
        outer, documented = place.node, False
        start = _row(outer)
        if place.above is None or self.language.docstrings:
            return outer, start, documented
        siblings = place.above.node.children
        for index in range(place.number - 1, -1, -1):
            above = siblings[index]
            comment = _is_comment(above.type)
            if above.type in ATTRIBUTES and _end_row(above) == start:  # on the same line
                outer = above
            elif (
                not (comment or above.type in ATTRIBUTES)
                or _end_row(above) + 1 != start
                or not self._starts_its_line(above)
            ):
                break
            start, documented = _row(above), documented or comment
        return outer, start, documented

    def _quote(self, node: Any) -> None:
        """Note a comment or string of several lines."""
        start, end = _row(node), _end_row(node)
        if start != end:
            self.quoted.append((start, end + 1))

    def _is_docstring(self, node: Any, kind: str) -> bool:
        return (
            self.language.docstrings
            and kind == "expression_statement"
            and node.named_child_count == 1
            and node.named_child(0).type in ("string", "concatenated_string")
        )

    def _is_import(self, statement: Any) -> bool:
        if statement.type in self.language.imports:
            return True
        if self.language.import_words and _row(statement) == _end_row(statement):
            word = re.match(rb"[\w.]+", self.lines[_row(statement)].lstrip())
            if word is not None and word[0].decode(errors="replace") in self.language.import_words:
                self.imports.add(statement.start_byte)
                return True
        return False

    def _is_stub(self, statement: Any) -> bool:
        if self.language.docstrings and statement.type == "expression_statement":
            statement = statement.named_child(0)
            if statement.type in CONSTANTS:
                return True
        return STUB.fullmatch(self.data[statement.start_byte : statement.end_byte]) is not None

    def _starts_its_line(self, node: Any) -> bool:
        return not self.lines[_row(node)][: node.start_point.column].strip()

    def _ends_its_line(self, node: Any) -> bool:
        row = _end_row(node)
        after = self.lines[row][node.end_point.column :].strip(b" \t;,)") if node.end_point.row == row else b""
        return not after or after.startswith(COMMENTS)

    def _ends_alone(self, node: Any) -> bool:
        """Whether the last line of a function has nothing on it but what ends the function."""
        ends = self.language.ends
        last = self.lines[_end_row(node)][: node.end_point.column].strip().decode(errors="replace")
        return self._ends_its_line(node) and (ends is None or ends.fullmatch(last) is not None)


def _statements(block: Any) -> Iterator[Any]:
    """The named children of a block, and those of the list that it has them in, in some grammars."""
    for child in block.named_children:
        if child.type in LISTS:
            yield from child.named_children
        else:
            yield child


@cache
def _is_quoted(kind: str) -> bool:
    return QUOTED.search(kind) is not None and kind not in NOT_QUOTED


@cache
def _is_comment(kind: str) -> bool:
    return "comment" in kind or kind == "marginalia"


def _row(node: Any) -> int:
    return int(node.start_point.row)


def _end_row(node: Any) -> int:
    """The last row with text of a node: some comments end at the start of the next."""
    end = node.end_point
    return int(end.row - (end.column == 0 and end.row > node.start_point.row))


def _in_characters(text: str, data: bytes, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Offsets of bytes as those of characters, without white space around, in order; those of a wanted length."""
    places: Any = range(len(data) + 1)
    if not text.isascii():
        begins = (np.frombuffer(data, np.uint8) & 0xC0) != 0x80  # every byte but those that go on with a character
        places = np.concatenate(([0], np.cumsum(begins)))
    found = set()
    for first, last in spans:
        start, end = int(places[first]), int(places[last])
        if end - start > 2 * MAX_EXPRESSION:  # not even looked at: calls in calls would take time by their square
            continue
        piece = text[start:end]
        start += len(piece) - len(piece.lstrip())
        length = len(piece.strip())
        if MIN_EXPRESSION <= length <= MAX_EXPRESSION:
            found.add((start, start + length))
    return sorted(found)
