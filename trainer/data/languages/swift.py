"""Swift."""

from trainer.data.languages.record import language

SWIFT = language(
    "swift",
    (".swift",),
    ("tree_sitter_swift", "language"),
    functions=("function_declaration", "init_declaration", "deinit_declaration"),
    classes=("class_declaration", "protocol_declaration"),  # structs, enums, actors and extensions are the former
    blocks=("source_file", "function_body", "statements", "class_body", "protocol_body", "enum_class_body"),
    imports=("import_declaration",),
    contexts=("{}", "class C {{\n{}\n}}\n"),
)
