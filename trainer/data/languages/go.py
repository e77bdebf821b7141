"""Go."""

from trainer.data.languages.tree_sitter import language

GO = language(
    "go",
    (".go",),
    grammar=("tree_sitter_go", "language"),
    functions=("function_declaration", "method_declaration"),
    blocks=("block", "statement_list"),
    methods_in_classes=False,
)
