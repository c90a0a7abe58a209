"""The documentation works without a network: formulas, remote hosts, pages of the API, and code as wide as a page."""

import ast
import functools
import html
import inspect
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

import skcds
from skcds import ConsistentSamplerScratch
from skcds.adapters import from_numpy, from_prior

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
WIDTH = 88  # characters of code that a page shows without wrapping

pytest.importorskip("math_core", reason="needs skcds[docs]")
pytest.importorskip("sphinx", reason="needs skcds[docs]")
sys.path.insert(0, str(DOCS / "extensions"))

from mathml import to_mathml  # noqa: E402
from offline import check_folder, remote_loads  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402
from sphinx.errors import ExtensionError  # noqa: E402


def indented_after(lines, start):
    """The lines that belong to the directive in line `start`, without their indentation."""
    margin = len(lines[start]) - len(lines[start].lstrip())
    body = []
    for line in lines[start + 1 :]:
        if line.strip() and len(line) - len(line.lstrip()) <= margin:
            break
        body.append(line)
    return textwrap.dedent("\n".join(body)).strip("\n")


def formulas(text):
    """Pairs (TeX, whether displayed) of all formulas in a text in reStructuredText."""
    inline = [(re.sub(r"\s+", " ", tex), False) for tex in re.findall(r":math:`([^`]+)`", text)]
    lines = text.splitlines()
    starts = [k for k, line in enumerate(lines) if line.lstrip().startswith(".. math::")]
    first = [lines[k].split(".. math::")[1].strip() for k in starts]
    blocks = [(f"{tex}\n{indented_after(lines, k)}".strip(), True) for tex, k in zip(first, starts, strict=True)]
    return inline + blocks


def docstrings():
    """All docstrings of the package, with the file of each."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for path in sorted((ROOT / "skcds").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, kinds) and ast.get_docstring(node):
                yield path, ast.get_docstring(node)


def pages():
    """Files of the pages written by hand, not of those that a build makes."""
    made = {"_build", "generated", "examples"}
    return [path for path in sorted(DOCS.rglob("*.rst")) if not made & {*path.relative_to(DOCS).parts}]


def texts():
    """Every text that becomes a page, with its file."""
    yield from ((path, path.read_text(encoding="utf-8")) for path in pages())
    for path in sorted((DOCS / "gallery").glob("*.py")):
        yield path, path.read_text(encoding="utf-8").replace("\n# ", "\n")
    yield from docstrings()


def test_every_formula_becomes_mathml():
    found = [(path.name, *formula) for path, text in texts() for formula in formulas(text)]
    assert sum(name == "guide.rst" for name, *_ in found) >= 100  # those that the guide has now
    for name, tex, display in found:
        mathml = to_mathml(tex, display)
        assert "\\" not in mathml and not set("{}") & set(html.unescape(mathml)), (name, tex)
        ElementTree.fromstring(html.unescape(mathml.replace("&lt;", "").replace("&amp;", "")))  # well-formed


def test_formulas_are_found_in_docstrings_too():
    text = "Of\n    :math:`a\n    + b`, and\n\n    .. math::\n\n       c \\\\\n       d\n\n    .. math:: e\n\n    end"
    assert formulas(text) == [("a + b", False), ("c \\\\\nd", True), ("e", True)]


@pytest.mark.parametrize(
    "tex, parts",
    [
        (r"\frac{\rho(x)}{Z}", ["<mfrac>", "<mi>ρ</mi>"]),
        (r"\operatorname{Var}[\log w]", ["<mi>Var</mi>", "<mi>log</mi>"]),
        (r"\left[ \frac{a}{b} \right]", ["[", "]", "<mfrac>"]),
        (r"\tilde v_k", ['<mover accent="true">', "<msub>"]),
        (r"f_{\theta'}(x)", ["<msub>", "′"]),
        (r"\sum_{k=0}^{N-1} x_k", ["<munderover>", "∑"]),
        (r"a &= b \\ c &= d", ["<mtable", "<mtr>"]),
        ("a = b\n\nc = d", ["<mtable", "<mtr>"]),
        (r"\begin{align} a &= b \\ c &= d \end{align}", ["<mtable", "<mtr>"]),
        (r"a < b", ["&lt;"]),
    ],
)
def test_mathml_has_the_parts_of_the_formula(tex, parts):
    mathml = to_mathml(tex, display=True)
    assert all(part in mathml for part in parts), mathml
    assert mathml.startswith('<math display="block"') and mathml.endswith("</math>")


@pytest.mark.parametrize("tex", [r"\frac{1", r"\nosuchcommand", r"\left[ x", "a & b", r"x_", r"\begin{align} a"])
def test_a_formula_that_is_not_understood_is_named(tex):
    with pytest.raises(ValueError, match="no MathML of the formula") as caught:
        to_mathml(tex, display=True)
    assert repr(tex) in str(caught.value)


def build(folder, text, extensions):
    """Builds a page with some of the extensions; returns its HTML, or raises what the build raises."""
    (folder / "index.rst").write_text(f"Title\n=====\n\n{text}\n")
    renderer = "mathml" if "mathml" in extensions else "mathjax"
    overrides = {"extensions": extensions, "html_math_renderer": renderer, "html_theme": "basic"}
    out = str(folder / "out")
    app = Sphinx(str(folder), None, out, out, "html", overrides, status=None, warning=None, warningiserror=True)
    app.build()
    if app.statuscode:
        raise RuntimeError("the build warned")
    return (folder / "out" / "index.html").read_text(encoding="utf-8")


def test_a_page_shows_its_formulas_without_a_script(tmp_path):
    text = "With :math:`x < y_0`:\n\n.. math:: a &= b \\\\ c &= d\n   :label: sum\n\nSee :eq:`sum`."
    page = build(tmp_path, text, ["mathml", "offline"])
    assert page.count("<math") == 2 and "(1)" in page and "x &lt; y" not in page and "\\\\" not in page


def test_a_build_fails_by_a_formula_that_is_not_understood(tmp_path):
    with pytest.raises(Exception, match=r"no MathML of the formula|the build warned"):
        build(tmp_path, r"With :math:`\nosuchcommand`.", ["mathml", "offline"])


def test_a_build_fails_by_a_script_from_elsewhere(tmp_path):
    with pytest.raises(ExtensionError, match=r"index\.html loads https://cdn"):
        build(tmp_path, "With :math:`x`.", ["sphinx.ext.mathjax", "offline"])


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.html", '<script async="async" src="https://cdn.example/a.js"></script>'),
        ("a.html", '<link rel="stylesheet" href="http://cdn.example/a.css">'),
        ("a.html", '<link rel="preconnect" href="//fonts.example">'),
        ("a.html", '<img alt="" src="https://pictures.example/a.png"/>'),
        ("a.html", "<style>@font-face {src: url('https://fonts.example/a.woff2')}</style>"),
        ("a.html", '<p style="background: url(//pictures.example/a.png)">text</p>'),
        ("a.html", '<script type="module">import a from "https://cdn.example/a.js"</script>'),
        ("a.css", '@import "https://fonts.example/css";'),
        ("a.css", "@import url(https://fonts.example/css);"),
        ("a.css", "@font-face {src: url( //fonts.example/a.woff2 ) format('woff2')}"),
        ("a.js", 'const a = await import("https://cdn.example/a.js")'),
    ],
)
def test_what_is_loaded_from_elsewhere_is_found(tmp_path, name, text):
    assert len(remote_loads(name, text)) == 1
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / name).write_text(text)
    with pytest.raises(ExtensionError, match=re.escape(str(Path("deep") / name))):
        check_folder(tmp_path)


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.html", '<a href="https://example.org">a link</a> https://example.org'),
        ("a.html", '<link rel="canonical" href="https://example.org/a.html">'),
        ("a.html", '<script src="_static/a.js"></script><img src="data:image/png;base64,AA=="/>'),
        ("a.html", '<pre>&lt;script src="https://cdn.example/a.js"&gt;</pre>'),
        ("a.html", "<script>const page = 'https://example.org'</script>"),
        (
            "a.css",
            "/* from https://example.org */ a {background: url(\"data:image/svg+xml,<svg xmlns='http://w3.org'>\")}",
        ),
        ("a.js", "// see https://example.org\nconst svg = 'http://www.w3.org/2000/svg'"),
    ],
)
def test_links_and_local_files_are_left_alone(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    check_folder(tmp_path)


def api_pages():
    """The text of each page of the API but the index, by name."""
    return {path.stem: path.read_text() for path in (DOCS / "api").glob("*.rst") if path.stem != "index"}


@pytest.mark.parametrize("module", ["skcds", "skcds.adapters"])
def test_every_public_name_has_a_page_and_a_line_in_the_index(module):
    pages, index = "\n".join(api_pages().values()), (DOCS / "api" / "index.rst").read_text()
    module = sys.modules[module]
    for name in module.__all__:
        thing = getattr(module, name)
        if inspect.ismodule(thing):
            assert f".. automodule:: {thing.__name__}\n" in pages
        else:
            assert len(re.findall(rf"^\.\. auto\w+:: ([\w.]+\.)?{name}$", pages, re.MULTILINE)) == 1, name
            assert re.search(rf"^   ([\w.]+\.)?{name}$", index, re.MULTILINE), name


@pytest.mark.parametrize("module", [skcds.metrics, skcds.specifications, skcds.targets])
def test_the_index_lists_what_a_module_has(module):
    index = (DOCS / "api" / "index.rst").read_text()
    short = module.__name__.removeprefix("skcds.")
    assert sorted(re.findall(rf"^   {short}\.(\w+)$", index, re.MULTILINE)) == sorted(module.__all__)


@pytest.mark.parametrize(
    "name", [name for name in skcds.__all__ if hasattr(getattr(skcds, name), "_doc_link_template")]
)
def test_the_link_of_an_estimator_leads_to_its_page(name):
    link = getattr(skcds, name)()._get_doc_link()
    page, anchor = link.split("/en/latest/")[1].split("#")
    text = (DOCS / page).with_suffix(".rst").read_text()
    assert anchor == f"skcds.{name}" and f".. autoclass:: {name}\n" in text


@pytest.mark.parametrize("name", skcds.specifications.__all__)
def test_the_link_of_an_inner_specification_leads_to_its_page(name):
    link = getattr(skcds.specifications, name)()._get_doc_link()
    page, anchor = link.split("/en/latest/")[1].split("#")
    text = (DOCS / page).with_suffix(".rst").read_text()
    assert anchor == f"skcds.specifications.{name}"
    assert f".. autoclass:: {name}\n" in text.partition("automodule:: skcds.specifications")[2]


def code_lines():
    """Lines of code that pages show, with the file of each."""
    for path in pages():
        lines = path.read_text(encoding="utf-8").splitlines()
        for k, line in enumerate(lines):
            if line.lstrip().startswith(".. code-block::"):
                yield from ((path, code) for code in indented_after(lines, k).splitlines())
    for path in sorted((DOCS / "gallery").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        body = source.split('"""', 2)[2]
        yield from ((path, code) for code in body.splitlines() if not code.startswith("# "))
    for path, text in docstrings():
        yield from ((path, code.strip()) for code in text.splitlines() if re.match(r" *(>>>|\.\.\.) ", code))


def test_code_is_as_wide_as_a_page_shows():
    lines = list(code_lines())
    assert len({path for path, _ in lines}) >= 15 and len(lines) > 500  # it is found at all
    assert [f"{path.name}: {code}" for path, code in lines if len(code) > WIDTH] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("neighbour", ["dynesty, UltraNest", "nautilus", "pocoMC", "emcee", "Blobs"])
def test_what_neighbours_are_shown_runs(neighbour):
    """Our blocks of each section, after the definitions of theirs; fits of seconds, to few evaluations."""
    text = (DOCS / "neighbours.rst").read_text()
    section = text.split(f"\n{neighbour}\n{'-' * len(neighbour)}\n")[1].split("\n---")[0]
    blocks = [textwrap.dedent(code) for code in re.findall(r"code-block:: python\n\n((?:   .*\n|\n)+)", section)]
    definitions = blocks[0].split("sampler =")[0].split("prior = ")[0] if len(blocks) > 1 else ""
    names = {"np": np, "norm": stats.norm, "uniform": stats.uniform, "functools": functools, "ivar": np.arange(1.0, 6)}
    names |= {"log_likelihood": lambda x: -0.5 * np.sum(x**2), "ConsistentSamplerScratch": ConsistentSamplerScratch}
    names |= {"from_prior": from_prior, "from_numpy": from_numpy, "likelihood": lambda p: -0.5 * (p["a"] - p["b"]) ** 2}
    exec(definitions, names)
    for block in blocks[min(1, len(blocks) - 1) :]:
        exec(block.replace("max_time=60", "max_time=8, max_energy_evals=2000"), names)
    assert neighbour == "Blobs" or names["sampler"].n_iter_ > 0


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted((DOCS / "gallery").glob("plot_*.py")), ids=lambda path: path.stem)
def test_a_gallery_script_runs(script):
    if "numpyro" in script.read_text():
        pytest.importorskip("numpyro")
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)], env=environment, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr[-2000:]
