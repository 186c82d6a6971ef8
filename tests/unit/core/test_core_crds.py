"""The generated CRDs: in step with the models, bounded everywhere, and every rule has its cases."""

from collections import Counter

import crd_rules
import pytest

from tuneloop_core.api import generate


def test_files_are_as_generated() -> None:
    assert generate.drift(crd_rules.ROOT / "crds") == []


@pytest.mark.parametrize("plural", crd_rules.KINDS)
def test_each_rule_has_cases(plural: str) -> None:
    table = Counter((row["at"].replace("{}", "[]"), row["says"]) for row in crd_rules.rows(plural))
    found = Counter((path.replace("{}", "[]"), message) for path, message in crd_rules.rules(plural))
    assert table == found


@pytest.mark.parametrize("plural", crd_rules.KINDS)
def test_each_row_accepts_and_rejects(plural: str) -> None:
    for row in crd_rules.rows(plural):
        assert row.get("good") or row.get("accept"), row
        assert row.get("bad") or row.get("reject"), row


@pytest.mark.parametrize("plural", crd_rules.KINDS)
def test_size(plural: str) -> None:
    text = (crd_rules.ROOT / "crds" / f"{plural}.tuneloop.dev.yaml").read_text()
    assert len(text.encode()) < 200_000


@pytest.mark.parametrize("plural", crd_rules.KINDS)
def test_each_field_has_a_description(plural: str) -> None:
    for path, node in crd_rules.nodes(crd_rules.schema(plural)):
        for name, child in node.get("properties", {}).items():
            if not path.startswith("metadata") and f"{path}{name}" != "metadata":
                assert child.get("description"), f"{path}.{name}"


@pytest.mark.parametrize("plural", crd_rules.KINDS)
def test_everything_is_bounded(plural: str) -> None:
    for path, node in crd_rules.nodes(crd_rules.schema(plural)):
        if path in {"apiVersion", "kind"}:
            continue
        if node.get("type") == "string":
            assert "maxLength" in node or "enum" in node, path
        if node.get("type") == "array":
            assert "maxItems" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path
        if node.get("type") == "integer" and path.startswith("spec"):
            assert {"minimum", "maximum"} <= node.keys(), path


@pytest.mark.parametrize("plural", crd_rules.KINDS)
def test_schema_is_structural(plural: str) -> None:
    refused = {"$ref", "anyOf", "oneOf", "allOf", "title", "const", "nullable", "pattern"}
    for path, node in crd_rules.nodes(crd_rules.schema(plural)):
        assert not refused & node.keys(), path
        assert "type" in node or "x-kubernetes-int-or-string" in node, path


@pytest.mark.parametrize("plural", crd_rules.KINDS)
def test_status_begins_as_not_yet_looked_at(plural: str) -> None:
    assert crd_rules.schema(plural)["properties"]["status"]["default"] == {"observedGeneration": -1}


def test_a_drifted_file_is_told(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert generate.main(["--folder", str(tmp_path)]) == 0
    assert generate.main(["--folder", str(tmp_path), "--check"]) == 0
    (tmp_path / "finetunejobs.tuneloop.dev.yaml").write_text("edited")
    assert generate.main(["--folder", str(tmp_path), "--check"]) == 1
    assert "make generate" in capsys.readouterr().err
