"""Shell, by bash's grammar."""

from trainer.data.languages.record import language

SHELL = language(
    "shell",
    (".sh", ".bash"),
    ("tree_sitter_bash", "language"),
    functions=("function_definition",),
    blocks=("program", "compound_statement", "do_group", "subshell"),
    import_words=("source", "."),
    comment="#",
)
