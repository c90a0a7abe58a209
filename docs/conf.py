"""Configuration of Sphinx. Builds without a network: there is no intersphinx."""

import skcds

project = "skcds"
author = "skcds developers"
project_copyright = "2026, skcds developers"
version = release = skcds.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
]
exclude_patterns = ["_build", "generated"]
default_role = "py:obj"

autosummary_generate = True
autodoc_typehints = "none"  # types are told in the docstrings
autodoc_member_order = "bysource"
numpydoc_show_class_members = False  # autodoc lists them
numpydoc_xref_param_type = False

html_theme = "furo"
html_title = f"skcds {release}"
html_show_sourcelink = False
