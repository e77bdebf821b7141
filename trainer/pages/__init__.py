"""Pages of one file each, which need nothing else: no script, style sheet or font from elsewhere.

examples.html                the evaluation table, to look at: `eval/examples.html` of a run
try.html                     what `trainer try --page` serves
style.css, differences.js    what both have within them
"""

import json
from pathlib import Path
from typing import Any

import jinja2


def render(name: str, data: Any) -> str:
    """A page with its data within it. `data`: what JSON can say, without NaN; whatever stands in it stays text."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    # As JSON in a script element, which only `</script` or `<!--` could end: so no `<` is left in it.
    embedded = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return environment.get_template(name).render(data=embedded)
