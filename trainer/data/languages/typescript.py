"""TypeScript, and TypeScript with JSX."""

from trainer.data.languages.javascript import BLOCKS, CLASSES, FUNCTIONS, IMPORTS
from trainer.data.languages.record import Language, language


def _language(name: str, suffixes: tuple[str, ...]) -> Language:
    return language(
        name,
        suffixes,
        ("tree_sitter_typescript", f"language_{name}"),
        functions=FUNCTIONS,
        classes=(
            *CLASSES,
            *("abstract_class_declaration", "interface_declaration", "type_alias_declaration", "enum_declaration"),
            *("internal_module", "module"),
        ),
        blocks=(*BLOCKS, "interface_body", "object_type", "enum_body"),
        imports=(*IMPORTS, "import_alias"),
        contexts=("{}", "class C {{\n{}\n}}\n"),
    )


TYPESCRIPT = _language("typescript", (".ts", ".mts", ".cts"))
TSX = _language("tsx", (".tsx",))
