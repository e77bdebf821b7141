"""Java."""

from trainer.data.languages.record import language

JAVA = language(
    "java",
    (".java",),
    ("tree_sitter_java", "language"),
    functions=("method_declaration", "constructor_declaration", "compact_constructor_declaration"),
    classes=(
        *("class_declaration", "interface_declaration", "enum_declaration", "record_declaration"),
        "annotation_type_declaration",
    ),
    blocks=(
        *("program", "block", "constructor_body", "class_body", "interface_body", "enum_body"),
        *("enum_body_declarations", "annotation_type_body"),
    ),
    imports=("import_declaration", "package_declaration"),
    contexts=("{}", "class C {{\n{}\n}}\n"),
)
