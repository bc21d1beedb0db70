"""What is importable, what is shipped. `kernels/` is a shelf: see kernels/README.md."""

import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_kernels_is_not_a_package():
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_kernels_holds_nothing_else_that_could_be_imported():
    entries = {entry.name for entry in (ROOT / "kernels").iterdir()} - {"__pycache__", ".pytest_cache"}
    assert entries == {"moe_kernels", "README.md"}


def test_transformers_models_import_with_the_repository_first_on_the_path():
    # `python -c` puts the working directory first, as `python -m` does.
    run(
        "-c",
        "import transformers.modeling_utils, transformers.integrations.hub_kernels\n"
        "import transformers.models.gemma4.modeling_gemma4\n"
        "import transformers.models.diffusion_gemma.modeling_diffusion_gemma\n",
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files in the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    (path,) = folder.iterdir()
    with ZipFile(path) as file:
        return set(file.namelist())


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: set[str]):
    tops = {name.split("/")[0] for name in wheel if ".dist-info/" not in name}
    assert tops == {Path(package).name for package in SHIPPED}


def test_the_wheel_holds_every_file_of_the_packages(wheel: set[str]):
    """The demo's checkpoints among them, which the gateway answers with when nothing is configured."""
    for package in map(Path, SHIPPED):
        files = (path for path in (ROOT / package).rglob("*") if path.is_file() and path.suffix != ".pyc")
        missing = {str(path.relative_to(ROOT / package.parent)) for path in files} - wheel
        assert not missing
