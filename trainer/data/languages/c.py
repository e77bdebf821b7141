"""C and C++. A header is C by its name: `.h` tells no more."""

from trainer.data.languages.record import language

FUNCTIONS = ("function_definition",)
CLASSES = ("struct_specifier", "union_specifier", "enum_specifier")
BLOCKS = (
    *("translation_unit", "compound_statement", "field_declaration_list", "enumerator_list"),
    *("preproc_if", "preproc_ifdef", "preproc_else", "preproc_elif"),
)
IMPORTS = ("preproc_include",)
C = language(
    "c",
    (".c", ".h"),
    ("tree_sitter_c", "language"),
    functions=FUNCTIONS,
    classes=CLASSES,
    blocks=BLOCKS,
    imports=IMPORTS,
)
CPP = language(
    "cpp",
    (".cc", ".cpp", ".cxx", ".hpp", ".hh", ".hxx", ".h++"),
    ("tree_sitter_cpp", "language"),
    functions=FUNCTIONS,
    classes=(*CLASSES, "class_specifier", "namespace_definition", "linkage_specification", "concept_definition"),
    blocks=(*BLOCKS, "declaration_list"),
    imports=(*IMPORTS, "using_declaration", "import_declaration", "module_declaration"),
    contexts=("{}", "class C {{\n{}\n}};\n"),
)
