"""Ruby."""

import re

from trainer.data.languages.record import language

RUBY = language(
    "ruby",
    (".rb",),
    ("tree_sitter_ruby", "language"),
    functions=("method", "singleton_method"),
    classes=("class", "module", "singleton_class"),
    blocks=("program", "body_statement", "block_body", "then", "else", "do"),
    import_words=("require", "require_relative", "load", "autoload"),
    comment="#",
    ends=re.compile(r"end\b"),
)
