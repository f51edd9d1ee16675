"""Pages and cards from the jinja2 templates that lie beside the code.

A value in a page is escaped; Markdown is not HTML, so nothing is escaped there. Code
that renders nothing does not import this module: jinja2 takes time to import.
"""

import jinja2

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("vilem_jax", ""),
    autoescape=jinja2.select_autoescape(["html.j2"]),
    undefined=jinja2.StrictUndefined,  # a missing value is an error, not an empty text
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render_template(name: str, **values: object) -> str:
    """The text of a template, given by its path in the package: "export/card.md.j2"."""
    text = _ENVIRONMENT.get_template(name).render(values)
    # A byte of a file name that is not UTF-8 is escaped, so that any text is written.
    return text.encode(errors="backslashreplace").decode()
