"""PHP."""

from trainer.data.languages.record import language

PHP = language(
    "php",
    (".php",),
    ("tree_sitter_php", "language_php"),
    functions=("function_definition", "method_declaration"),
    classes=(
        *("class_declaration", "interface_declaration", "trait_declaration", "enum_declaration"),
        "namespace_definition",
    ),
    blocks=("program", "compound_statement", "declaration_list", "enum_declaration_list"),
    imports=("namespace_use_declaration",),
    import_words=("namespace", "require", "require_once", "include", "include_once"),
    opening="<?php\n",
    contexts=("{}", "class C {{\n{}\n}}\n"),
)
