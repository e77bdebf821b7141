"""Rust."""

from trainer.data.languages.tree_sitter import language

RUST = language(
    "rust",
    (".rs",),
    grammar=("tree_sitter_rust", "language"),
    functions=("function_item",),
    blocks=("block",),
    methods_in_classes=False,
)
