"""Kotlin."""

from trainer.data.languages.record import language

KOTLIN = language(
    "kotlin",
    (".kt", ".kts"),
    ("tree_sitter_kotlin", "language"),
    functions=("function_declaration", "secondary_constructor"),
    classes=("class_declaration", "object_declaration", "companion_object"),
    blocks=("source_file", "block", "class_body", "enum_class_body", "lambda_literal"),
    imports=("import", "package_header"),
    contexts=("{}", "class C {{\n{}\n}}\n"),
)
