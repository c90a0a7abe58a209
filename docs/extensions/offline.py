"""Fails a build whose pages load anything from another host: scripts, styles, fonts, pictures."""

import re
from html.parser import HTMLParser
from pathlib import Path

from sphinx.errors import ExtensionError

REMOTE = re.compile(r"\s*(https?:)?//", re.IGNORECASE)
IN_STYLE = re.compile(r"(?:url\(\s*|@import\s+)[\"']?\s*((?:https?:)?//[^\"')\s;]+)", re.IGNORECASE)
IN_SCRIPT = re.compile(r"\b(?:import\s*\(?|from|fetch\s*\()\s*[\"'`]((?:https?:)?//[^\"'`]+)")
LOADED = ("src", "srcset", "data", "poster", "xlink:href")  # attributes whose address is fetched; a link's is not
NAMED_ONLY = {"alternate", "author", "canonical", "license"}  # links in the head that are not fetched


class _Loads(HTMLParser):
    """Collects the remote addresses that a page loads by itself."""

    def __init__(self):
        super().__init__()
        self.found = []
        self.inside = None

    def handle_starttag(self, tag, attrs):
        attributes = {name: value or "" for name, value in attrs}
        names = [name for name in LOADED if name in attributes]
        if tag == "link" and not set(attributes.get("rel", "").lower().split()) & NAMED_ONLY:
            names.append("href")
        self.found += [attributes[name] for name in names if REMOTE.match(attributes[name])]
        self.found += IN_STYLE.findall(attributes.get("style", ""))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside in ("style", "script"):
            self.found += (IN_STYLE if self.inside == "style" else IN_SCRIPT).findall(data)


def remote_loads(name, text):
    """The remote addresses that a file loads, by its name's end."""
    if name.endswith(".css"):
        return IN_STYLE.findall(text)
    if name.endswith(".js"):
        return IN_SCRIPT.findall(text)
    page = _Loads()
    page.feed(text)
    return page.found


def check_folder(folder):
    """Raise an ExtensionError that names every file of the folder that loads from another host."""
    lines = []
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix in (".html", ".css", ".js"):
            addresses = remote_loads(path.name, path.read_text(encoding="utf-8"))
            lines += [f"{path.relative_to(folder)} loads {address}" for address in addresses]
    if lines:
        raise ExtensionError("The documentation has to work without a network, but\n" + "\n".join(lines))


def check_build(app, exception):
    """After a build of pages."""
    if exception is None and app.builder.format == "html":
        check_folder(app.outdir)


def setup(app):
    """Sphinx calls this."""
    app.connect("build-finished", check_build, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
