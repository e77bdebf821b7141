"""TypeScript, and TypeScript with JSX."""

from trainer.data.languages.tree_sitter import language

TYPESCRIPT = language(
    "typescript",
    (".ts", ".mts", ".cts"),
    grammar=("tree_sitter_typescript", "language_typescript"),
    methods_in_classes=True,
)
TSX = language("tsx", (".tsx",), grammar=("tree_sitter_typescript", "language_tsx"), methods_in_classes=True)
