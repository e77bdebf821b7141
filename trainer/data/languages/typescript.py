"""TypeScript, and TypeScript with JSX."""

from trainer.data.languages.javascript import BLOCKS, FUNCTIONS
from trainer.data.languages.tree_sitter import language

TYPESCRIPT = language(
    "typescript",
    (".ts", ".mts", ".cts"),
    grammar=("tree_sitter_typescript", "language_typescript"),
    functions=FUNCTIONS,
    blocks=BLOCKS,
    methods_in_classes=True,
)
TSX = language(
    "tsx",
    (".tsx",),
    grammar=("tree_sitter_typescript", "language_tsx"),
    functions=FUNCTIONS,
    blocks=BLOCKS,
    methods_in_classes=True,
)
