"""JavaScript."""

from trainer.data.languages.tree_sitter import language

FUNCTIONS = (
    *("function_declaration", "generator_function_declaration", "method_definition"),
    *("arrow_function", "function_expression"),  # where they are given a name
)
BLOCKS = ("statement_block",)
JAVASCRIPT = language(
    "javascript",
    (".js", ".jsx", ".mjs", ".cjs"),
    grammar=("tree_sitter_javascript", "language"),
    functions=FUNCTIONS,
    blocks=BLOCKS,
    methods_in_classes=True,
)
