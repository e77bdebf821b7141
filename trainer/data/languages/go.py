"""Go."""

from trainer.data.languages.record import language

GO = language(
    "go",
    (".go",),
    ("tree_sitter_go", "language"),
    functions=("function_declaration", "method_declaration"),
    classes=("type_declaration",),
    blocks=("source_file", "block", "statement_list", "field_declaration_list", "interface_type"),
    imports=("import_declaration", "package_clause"),
)
