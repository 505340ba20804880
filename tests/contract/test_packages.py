"""The two packages: light to import, apart from each other, and quiet about JAX's configuration."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {"bayeslaw": {"torch", "torchvision", "imp_runs"}, "imp_runs": {"jax", "numpyro", "arviz", "bayeslaw"}}


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("package", ["bayeslaw", "imp_runs"])
def test_importing_is_light(package: str) -> None:
    heavy = "{'torch', 'jax', 'numpyro', 'arviz', 'pandas', 'matplotlib'}"
    assert run(f"import sys, {package}; print(sorted({heavy} & set(sys.modules)))") == "[]"


@pytest.mark.parametrize("package", ["bayeslaw", "imp_runs"])
def test_packages_do_not_import_each_other(package: str) -> None:
    for path in sorted((ROOT / package).glob("*.py")):
        if path.name == "live.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & FORBIDDEN[package], path.name


@pytest.mark.parametrize("package", ["bayeslaw", "imp_runs"])
def test_every_public_name_resolves_and_is_in_the_stub(package: str) -> None:
    module = __import__(package)
    stub = (ROOT / package / "__init__.pyi").read_text(encoding="utf-8")
    assert set(re.findall(r" as (\w+)", stub)) == set(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_functions_stay_functions_whatever_was_loaded_first() -> None:
    assert run("import bayeslaw; bayeslaw.load; print(callable(bayeslaw.fit), callable(bayeslaw.load))") == "True True"


def test_a_fit_works_whatever_was_imported_first() -> None:
    """ArviZ leaves numpyro to be loaded on first use, and loaded by its parts it comes without some of them."""
    first = "import arviz, numpyro.distributions, numpyro, bayeslaw.fitting as fitting; "
    assert run(first + "fitting.bind_submodules(); print(numpyro.distributions.distribution.__name__)") == (
        "numpyro.distributions.distribution"
    )


def test_jax_keeps_its_configuration() -> None:
    code = "import jax, bayeslaw; bayeslaw.fit, bayeslaw.frontier; print(jax.config.jax_enable_x64, "
    assert run(code + "jax.numpy.ones(1).dtype)") == "False float32"


def test_the_contract_knows_every_column() -> None:
    from bayeslaw.runs import COLUMNS as KNOWN
    from imp_runs.table import COLUMNS as WRITTEN

    assert set(WRITTEN) <= set(KNOWN)


@pytest.mark.parametrize("command", ["bayeslaw", "imp_runs"])
def test_help_answers(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"{command}.cli", "--help"], capture_output=True, text=True, check=True
    )
    assert "Usage" in done.stdout
