"""The README's map names every module there is, and no other."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("package", ["bayeslaw", "imp_runs"])
def test_the_map_is_the_territory(package: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.split(f"| {package} | |")[1].split("\n\n")[0]
    named = {
        name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1] if "|" in row else "")
    }
    there = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
    assert named | {"errors"} == there | {"errors"}
