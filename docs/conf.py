"""Configuration of Sphinx. Builds and reads without a network: no intersphinx, no MathJax, and `offline` checks it."""

import os
import sys
from pathlib import Path

import skcds

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

project = "skcds"
author = "skcds developers"
project_copyright = "2026, skcds developers"
version = release = skcds.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
    "mathml",
    "offline",
]
exclude_patterns = [
    "_build",
    "generated",
    "gallery",
    "**sg_execution_times.rst",  # its table asks other hosts for scripts
]

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "examples",
    "filename_pattern": os.environ.get("SKCDS_GALLERY", "/plot_"),  # which scripts are run; all are shown
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_memory": False,
    "parallel": 2,
    "abort_on_example_error": True,
    "matplotlib_animations": False,
    "capture_repr": ("_repr_html_",),
}
default_role = "py:obj"

autosummary_generate = True
autodoc_typehints = "none"  # types are told in the docstrings
autodoc_member_order = "bysource"
numpydoc_show_class_members = False  # autodoc lists them
numpydoc_xref_param_type = False

html_theme = "furo"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["docs.css"]
html_title = f"skcds {release}"
html_show_sourcelink = False


def write_bad_input(app):
    """The table of bad input, from the tests that run through it."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from bad_input import table

    (HERE / "generated").mkdir(exist_ok=True)
    (HERE / "generated" / "bad_input.rst").write_text(table())


def setup(app):
    """Sphinx calls this."""
    app.connect("builder-inited", write_bad_input)
