# SPDX-License-Identifier: Apache-2.0
"""What users install: the wheel, and an editable checkout, each in an environment of its own.

Both are made from a copy of the sources, so that nothing is left in the checkout and no earlier
build leaks in. The dependencies are those of the environment that runs the tests, lent by a path
entry. Python does not follow such entries further: the checkout that is installed in *that*
environment stays invisible.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from carrot_twisted import __version__

pytestmark = pytest.mark.once

CHECKOUT = Path(__file__).resolve().parents[2]
PLUGIN = "twisted/plugins/carrot_twisted_plugin.py"
TWISTD = "from twisted.scripts.twistd import run; run()"


def run(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program without the settings of the test run."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def succeed(*command: str | Path, folder: Path) -> str:
    """Run a program that must succeed; return its output."""
    result = run(*command, folder=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def copy_of_the_sources(folder: Path) -> Path:
    """Copy what a package is built from."""
    unwanted = shutil.ignore_patterns("__pycache__", "dropin.cache")
    for name in ("carrot_twisted", "twisted", "systemd"):
        shutil.copytree(CHECKOUT / name, folder / name, ignore=unwanted)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, folder)
    return folder


class Environment:
    """A virtual environment that has its dependencies from the one that runs the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        succeed(sys.executable, "-m", "venv", "--without-pip", folder, folder=folder)

    def borrow_dependencies(self) -> None:
        (site_packages,) = self.folder.glob("lib/python*/site-packages")
        lender = sysconfig.get_path("purelib")
        (site_packages / "dependencies.pth").write_text(f"{lender}\n")

    def install(self, *arguments: str | Path) -> None:
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", self.python)
        succeed(*pip, "install", "--no-index", "--no-deps", *arguments, folder=self.folder)

    def twistd(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run(self.python, "-c", TWISTD, *arguments, folder=self.folder)

    def where_is_the_package(self) -> Path:
        program = "import carrot_twisted; print(carrot_twisted.__file__)"
        return Path(succeed(self.python, "-c", program, folder=self.folder).strip())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built with the environment's setuptools."""
    sources = copy_of_the_sources(tmp_path_factory.mktemp("sources"))
    output = tmp_path_factory.mktemp("wheel")
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation")
    succeed(*build, "--outdir", output, sources, folder=output)
    (wheel,) = output.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def content(wheel: Path) -> list[str]:
    """The names of the wheel's files."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture
def editable(tmp_path: Path) -> tuple[Environment, Path]:
    """An environment with an editable install, and the sources that it uses."""
    sources, home = tmp_path / "sources", tmp_path / "environment"
    sources.mkdir()
    home.mkdir()
    copy_of_the_sources(sources)
    environment = Environment(home)
    environment.borrow_dependencies()  # here already: setuptools is among them
    environment.install("--no-build-isolation", "--editable", sources)
    return environment, sources


def test_the_wheel_holds_one_file_below_twisted(content: list[str]) -> None:
    """A second one, an __init__.py say, would overwrite a file of Twisted's own."""
    assert [name for name in content if name.startswith("twisted/")] == [PLUGIN]


def test_the_wheel_holds_the_whole_package(content: list[str]) -> None:
    """Migrations, templates and static files are what packages forget most easily."""
    files = (path for path in (CHECKOUT / "carrot_twisted").rglob("*") if path.is_file())
    expected = {str(path.relative_to(CHECKOUT)) for path in files if path.suffix != ".pyc"}
    assert "carrot_twisted/migrations/0001_initial.py" in expected
    assert {name for name in content if name.startswith("carrot_twisted/")} == expected


def test_the_wheel_holds_nothing_else(content: list[str]) -> None:
    """No tests, no tools, no example."""
    tops = {name.split("/")[0] for name in content}
    named = f"carrot_twisted-{__version__}"
    assert tops == {"carrot_twisted", "twisted", f"{named}.dist-info", f"{named}.data"}
    data = {name for name in content if name.startswith(f"{named}.data")}
    units = (CHECKOUT / "systemd").iterdir()
    assert data == {f"{named}.data/data/lib/systemd/system/{unit.name}" for unit in units}


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"carrot_twisted-{__version__}.dist-info/METADATA").decode()
    metadata = Parser().parsestr(text)
    assert (metadata["Name"], metadata["Version"]) == ("carrot-twisted", __version__)
    assert metadata["Requires-Python"] == ">=3.11"
    assert {"postgres", "test"} <= set(metadata.get_all("Provides-Extra", []))


@pytest.mark.defect(42)
def test_the_wheel_brings_the_command_and_the_plugin_of_pytest(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"carrot_twisted-{__version__}.dist-info/entry_points.txt").decode()
    commands, plugins = text.strip().split("\n\n")
    assert commands == "[console_scripts]\ncarrot = carrot_twisted.command_line:main"
    assert plugins == "[pytest11]\ncarrot = carrot_twisted.pytest_plugin"


def test_twistd_lists_carrot_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    environment.install(wheel)
    environment.borrow_dependencies()
    assert environment.where_is_the_package().is_relative_to(tmp_path)
    assert lists_carrot(environment)
    assert (tmp_path / "lib" / "systemd" / "system" / "carrot@.service").is_file()


def test_twistd_lists_carrot_from_an_editable_install(editable: tuple[Environment, Path]) -> None:
    environment, sources = editable
    assert environment.where_is_the_package().is_relative_to(sources)
    assert lists_carrot(environment)


def test_an_import_error_on_the_way_to_the_service_is_shown(
    editable: tuple[Environment, Path],
) -> None:
    environment, sources = editable
    (sources / "carrot_twisted" / "tap.py").write_text("import a_module_that_is_missing\n")
    assert lists_carrot(environment), "listing the plugins must not need what one of them imports"
    result = environment.twistd("--nodaemon", "carrot", "--settings=project.settings")
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert "No module named 'a_module_that_is_missing'" in output
    assert "Unknown command" not in output


def lists_carrot(environment: Environment) -> bool:
    """True if `twistd --help` offers the command."""
    result = environment.twistd("--help")
    assert result.returncode == 0, result.stdout + result.stderr
    return any(line.split()[:1] == ["carrot"] for line in result.stdout.splitlines())
