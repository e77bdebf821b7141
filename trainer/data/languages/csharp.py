"""C#."""

from trainer.data.languages.record import language

CSHARP = language(
    "csharp",
    (".cs",),
    ("tree_sitter_c_sharp", "language"),
    functions=(
        *("method_declaration", "constructor_declaration", "destructor_declaration", "operator_declaration"),
        *("conversion_operator_declaration", "local_function_statement"),
    ),
    classes=(
        *("class_declaration", "struct_declaration", "interface_declaration", "enum_declaration"),
        *("record_declaration", "namespace_declaration"),
    ),
    blocks=("compilation_unit", "declaration_list", "block", "enum_member_declaration_list", "accessor_list"),
    imports=("using_directive", "extern_alias_directive", "file_scoped_namespace_declaration"),
    contexts=("{}", "class C {{\n{}\n}}\n"),
)
