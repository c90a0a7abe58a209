"""Formulas as MathML, which browsers render by themselves: no script, no network.

Sphinx's own renderers load MathJax from a server or call LaTeX.
"""

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

CONVERTER = LatexToMathML(fancy_error=False)
logger = logging.getLogger(__name__)


def aligned(tex):
    r"""A displayed formula as Sphinx means it: blank lines and ``\\`` part lines, which are aligned at ``&``."""
    lines = [part.strip() for part in tex.split("\n\n") if part.strip()]
    if len(lines) == 1 and (r"\\" not in tex or r"\begin" in tex):
        return lines[0]
    return r"\begin{aligned}" + r"\\".join(lines) + r"\end{aligned}"


def to_mathml(tex, display=False):
    """MathML of a formula; a ValueError names the formula where it is not understood."""
    try:
        return CONVERTER.convert_with_local_state(aligned(tex) if display else tex, displaystyle=display)
    except LatexError as error:
        raise ValueError(f"no MathML of the formula {tex!r}: {error}") from error


def mathml_or_warning(self, node, display):
    """The formula of a node, or its TeX and a warning, which is an error with ``-W``."""
    try:
        return to_mathml(node.astext(), display)
    except ValueError as error:
        logger.warning("%s", error, location=node)
        return self.encode(node.astext())


def visit_math(self, node):
    """A formula within a line."""
    self.body.append(self.starttag(node, "span", "", CLASS="math notranslate"))
    self.body.append(mathml_or_warning(self, node, display=False) + "</span>")
    raise nodes.SkipNode


def visit_displaymath(self, node):
    """A formula in a line of its own, with its number where it has one."""
    self.body.append(self.starttag(node, "div", CLASS="math notranslate"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append(mathml_or_warning(self, node, display=True) + "</div>\n")
    raise nodes.SkipNode


def setup(app):
    """Sphinx calls this; ``html_math_renderer = "mathml"`` chooses it."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
