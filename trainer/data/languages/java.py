"""Java."""

from trainer.data.languages.tree_sitter import language

JAVA = language(
    "java",
    (".java",),
    grammar=("tree_sitter_java", "language"),
    functions=("method_declaration", "constructor_declaration"),
    blocks=("block", "constructor_body"),
    methods_in_classes=True,
)
