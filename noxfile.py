"""Checks in virtual environments of their own: `nox --list`, `nox -s tests`, `nox -s oldest`.

pip takes PyTorch from wherever it is configured to look. To test with the CPU build, point it at an index or folder
that has one (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS), or name a version: `TORCH="torch==2.13.0" nox -s tests`.
"""

import configparser
import os
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.error_on_missing_interpreters = False

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
TORCH = os.environ.get("TORCH", "torch")


def lower_bounds() -> list[str]:
    """install_requires of setup.cfg with every `>=` turned into `==`."""
    config = configparser.ConfigParser()
    config.read(Path(__file__).with_name("setup.cfg"), encoding="utf-8")
    requirements = config["options"]["install_requires"].split()
    return [requirement.replace(">=", "==") for requirement in requirements]


def install(session: nox.Session, extra: str) -> None:
    """PyTorch first, so that it is the build asked for, then the package with an extra."""
    session.install(TORCH)
    session.install("-e", f".[{extra}]")


@nox.session(python=PYTHONS)
def tests(session):
    """Tests and the examples in docstrings."""
    install(session, "test")
    session.run("python", "-m", "pytest", *session.posargs)
    session.run("python", "-m", "pytest", "--doctest-modules", "skcds")


@nox.session
def slow(session):
    """Whole fits, judged statistically."""
    install(session, "test")
    session.run("python", "-m", "pytest", "-m", "slow", *session.posargs)


@nox.session
def lint(session):
    """Linter and formatter."""
    session.install("ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session):
    """Type checker."""
    install(session, "dev")
    session.run("mypy", "skcds")


@nox.session
def docs(session):
    """Documentation, warnings being errors."""
    install(session, "docs")
    session.run("python", "-m", "sphinx", "-W", "-b", "html", "docs", "docs/_build/html")


@nox.session(python="3.10")
def oldest(session):
    """Tests with the oldest dependencies that setup.cfg allows."""
    constraints = Path(session.create_tmp()) / "oldest.txt"
    constraints.write_text("\n".join(lower_bounds()) + "\n", encoding="utf-8")
    session.install("-e", ".[test]", "-c", str(constraints))
    session.run("python", "-m", "pip", "freeze")
    session.run("python", "-m", "pytest", *session.posargs)
