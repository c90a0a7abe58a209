"""An editable install is found from wherever a script lies."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytest.importorskip("setuptools", minversion="77", reason="builds with setuptools, without a network")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder of packages into which a clone, of the files that matter, is installed in editable mode."""
    folder = tmp_path_factory.mktemp("install")
    clone = folder / "above" / "skcds"
    (clone / "skcds").mkdir(parents=True)
    (clone / "skcds" / "__init__.py").write_text("from ._version import __version__\n")
    (clone / "skcds" / "_version.py").write_text('__version__ = "1.0"\n')
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        (clone / name).write_bytes((ROOT / name).read_bytes())
    command = f"from setuptools.build_meta import build_editable; build_editable({str(folder)!r})"
    subprocess.run([sys.executable, "-c", command], cwd=clone, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.mark.parametrize("place", ["above", "above/skcds", "above/skcds/skcds", "."])
def test_a_script_finds_the_package_wherever_it_lies(site, place):
    """Above a clone called skcds there is a folder of the package's name that is not the package."""
    script = site.parent / place / "script.py"
    script.write_text(f"import site; site.addsitedir({str(site)!r}); import skcds; print(skcds.__version__)")
    run = [sys.executable, "-S", str(script)]  # without the packages of this environment, of which skcds may be one
    assert subprocess.run(run, capture_output=True, text=True, timeout=60).stdout.strip() == "1.0"
