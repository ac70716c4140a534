"""HTML pages from templates; a page needs nothing else: no script, no file, nothing from a network.

Templates lie beside the code that fills them, in ``templates`` of its package. They extend
``base.html.j2`` and import ``macros.html.j2``, which stand beside this module.
"""

from __future__ import annotations

import base64
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from tagclip.utils.text import utf8_text

__all__ = ["render"]


def render(template: str, package: str, /, **context: Any) -> str:
    """Fill a template.

    Args:
        template: name of its file.
        package: the one whose ``templates`` hold it.
        context: what it shows, all of it escaped, also what is no UTF-8 in names of files
            (`utf8_text`). Pictures are bytes.

    Raises:
        jinja2.UndefinedError: it shows something that the context lacks.
    """
    return utf8_text(_environment(package).get_template(template).render(context))


@cache
def _environment(package: str) -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in (package, __package__)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment
