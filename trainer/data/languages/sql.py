"""SQL. It has statements alone: what is in the body of a function is another language, in a string."""

import re

from trainer.data.languages.record import language

SQL = language(
    "sql",
    (".sql",),
    ("tree_sitter_sql", "language"),
    blocks=("program", "transaction", "block", "column_definitions"),
    comment="--",
    ends=re.compile(r".*;\s*(--.*)?$"),
)
