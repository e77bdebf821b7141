"""JavaScript."""

from trainer.data.languages.record import language

FUNCTIONS = (
    *("function_declaration", "generator_function_declaration", "method_definition"),
    *("arrow_function", "function_expression", "generator_function"),  # where they are given a name
)
CLASSES = ("class_declaration",)
BLOCKS = ("program", "statement_block", "class_body", "object")
IMPORTS = ("import_statement",)
JAVASCRIPT = language(
    "javascript",
    (".js", ".jsx", ".mjs", ".cjs"),
    ("tree_sitter_javascript", "language"),
    functions=FUNCTIONS,
    classes=CLASSES,
    blocks=BLOCKS,
    imports=IMPORTS,
    contexts=("{}", "class C {{\n{}\n}}\n"),
)
