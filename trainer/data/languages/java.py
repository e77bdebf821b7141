"""Java."""

from trainer.data.languages.tree_sitter import language

JAVA = language("java", (".java",), grammar=("tree_sitter_java", "language"), methods_in_classes=True)
