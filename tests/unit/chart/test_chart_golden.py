"""What the chart renders, to the letter. After a wanted change: UPDATE_GOLDEN=1 pytest tests/unit/chart."""

import os
from pathlib import Path

import pytest
import yaml
from chart_render import objects

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
CASES = sorted(path.name for path in (GOLDEN / "input").glob("chart-*.yaml"))


@pytest.mark.parametrize("case", CASES)
def test_rendered_manifests(case: str) -> None:
    # The CRDs are compared with crds/ elsewhere; here they would only hide what matters.
    found = [obj for obj in objects((GOLDEN / "input" / case).read_text()) if obj["kind"] != "CustomResourceDefinition"]
    text = yaml.safe_dump_all(found, sort_keys=True, width=120)
    expected = GOLDEN / "output" / case
    if os.environ.get("UPDATE_GOLDEN"):
        expected.write_text(text)
    assert text == expected.read_text(), f"{expected.name} differs from what the chart renders"


def test_there_are_cases() -> None:
    assert len(CASES) == 3
