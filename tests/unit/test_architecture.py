"""Who may import whom: the contracts in pyproject.toml, and that they catch what they are there for."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("router", "diffusion_engine", "ar_engine", "engine_core", "classifiers", "demo_models", "kernels")
LINT = Path(sys.executable).with_name("lint-imports")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(folder), str(folder / "kernels")])
    return subprocess.run(
        [LINT, "--no-cache"], cwd=folder, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )


def test_the_contracts_are_kept():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "planted", "broken"),
    [
        ("router/policy.py", "import torch", "the gateway is torch-free"),
        ("diffusion_engine/api.py", "from transformers import AutoTokenizer", "the gateway is torch-free"),
        ("router/policy.py", "import diffusion_engine.engine", "the gateway is torch-free"),  # by way of an engine
        ("classifiers/api.py", "import ar_engine.api", "requests flow down, never up or sideways"),
        ("ar_engine/api.py", "import diffusion_engine.api", "requests flow down, never up or sideways"),
        ("kernels/moe_kernels/__init__.py", "import ar_engine.api", "requests flow down, never up or sideways"),
        ("classifiers/api.py", "import demo_models.tasks", "no engine, check or route sees the demo's answers"),
        ("router/wiring.py", "import demo_models.tasks", "no engine, check or route sees the demo's answers"),
        ("demo_models/store.py", "import router.policy", "the demo models stand alone"),
    ],
)
def test_a_violation_breaks_its_contract(tmp_path: Path, file: str, planted: str, broken: str):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "models"))
    with (tmp_path / file).open("a") as target:
        target.write(f"\n{planted}\n")
    done = lint(tmp_path)
    assert done.returncode == 1, done.stdout
    assert f"{broken} BROKEN" in done.stdout


def test_the_gateway_starts_without_torch():
    heavy = "{'torch', 'triton', 'transformers', 'sklearn'}"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, router.app, router.server; sys.exit(str({heavy} & sys.modules.keys()))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stderr.strip() == "set()"
