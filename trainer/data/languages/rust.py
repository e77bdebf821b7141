"""Rust."""

from trainer.data.languages.record import language

RUST = language(
    "rust",
    (".rs",),
    ("tree_sitter_rust", "language"),
    functions=("function_item",),
    classes=("struct_item", "enum_item", "union_item", "impl_item", "trait_item", "mod_item"),
    blocks=("source_file", "block", "declaration_list", "field_declaration_list", "enum_variant_list"),
    imports=("use_declaration", "extern_crate_declaration"),
)
