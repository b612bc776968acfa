"""Formulas as MathML, which browsers draw by themselves: no script and no font is loaded."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.typing import ExtensionMetadata

log = logging.getLogger(__name__)


def _convert(node: nodes.Element, display: str) -> str:
    """Return a formula as MathML; a command that the converter does not know is a warning."""
    latex = node.astext().replace(r"\arg", r"\operatorname{arg}")
    result = str(convert(latex, display=display))
    for unknown in re.findall(r"\\[A-Za-z]+", result):
        log.warning("no MathML for %s in %r", unknown, latex, location=node)
    return result


def visit_inline(translator: Any, node: nodes.math) -> None:
    """Write an inline formula."""
    translator.body.append(_convert(node, "inline"))
    raise nodes.SkipNode


def visit_block(translator: Any, node: nodes.math_block) -> None:
    """Write a displayed formula, which scrolls by itself where it is wider than the page."""
    translator.body.append(f'<div class="math">{_convert(node, "block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the renderer under the name ``mathml``."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
