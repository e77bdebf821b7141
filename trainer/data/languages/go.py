"""Go."""

from trainer.data.languages.tree_sitter import language

GO = language("go", (".go",), grammar=("tree_sitter_go", "language"), methods_in_classes=False)
