"""JavaScript."""

from trainer.data.languages.tree_sitter import language

JAVASCRIPT = language(
    "javascript",
    (".js", ".jsx", ".mjs", ".cjs"),
    grammar=("tree_sitter_javascript", "language"),
    methods_in_classes=True,
)
