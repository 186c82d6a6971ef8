"""URIs taken apart, and the same grammar as the CEL rules."""

from collections.abc import Callable

import crd_rules
import pytest

from tuneloop_core.uris import (
    URI,
    ClaimPath,
    HTTPSAddress,
    HubDataset,
    HubModel,
    OCIReference,
    S3Object,
    URIError,
    parse_dataset_uri,
    parse_model_uri,
    parse_output_uri,
    shown,
)

HOSTS = "the host must not be"


@pytest.mark.parametrize(
    ("parse", "text", "parts"),
    [
        (parse_model_uri, "hf://org/name", HubModel("org/name")),
        (parse_model_uri, "hf://org/datasets", HubModel("org/datasets")),
        (parse_model_uri, "pvc://claim/models/a/", ClaimPath("claim", "models/a")),
        (parse_model_uri, "s3://bucket/models/a", S3Object("bucket", "models/a")),
        (parse_model_uri, "oci://reg.example.com:5000/m/a:v1", OCIReference("reg.example.com:5000", "m/a", "v1")),
        (parse_dataset_uri, "hf://datasets/org/name", HubDataset("org/name")),
        (parse_dataset_uri, "hf://datasets/org/name/data/a.jsonl", HubDataset("org/name", "data/a.jsonl")),
        (
            parse_dataset_uri,
            "https://Host.example:8443/a?b=c",
            HTTPSAddress("https://Host.example:8443/a?b=c", "host.example"),
        ),
        (parse_dataset_uri, "https://[2001:db8::1]/a", HTTPSAddress("https://[2001:db8::1]/a", "2001:db8::1")),
        (parse_output_uri, "s3://bucket/models/", S3Object("bucket", "models/")),
    ],
)
def test_parts(parse: Callable[[str], URI], text: str, parts: URI) -> None:
    assert parse(text) == parts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ftp://host/a", 'model uri "ftp://host/a" is not one of hf://ORG/NAME, s3://BUCKET/KEY, oci://'),
        ("pvc://claim/../a", "'.' or '..' in its path"),
        ("hf://datasets/org/name", "is not one of hf://ORG/NAME"),
    ],
)
def test_errors_say_what_is_allowed(text: str, words: str) -> None:
    with pytest.raises(URIError) as error:
        parse_model_uri(text)
    assert words in str(error.value)


def uri_cases() -> list[tuple[str, str, bool]]:
    """(path, text, allowed) from the table of CEL rules, but for rules on hosts and releases."""
    return [
        (row["at"], text, allowed)
        for plural in crd_rules.KINDS
        for row in crd_rules.rows(plural)
        if row["at"] in {"spec.model.uri", "spec.dataset.uri", "spec.output.uri"}
        for allowed in (True, False)
        for text in row.get("good" if allowed else "bad", [])
        if allowed or not row["says"].startswith((HOSTS, "not in this release"))
    ]


@pytest.mark.parametrize(("path", "text", "allowed"), uri_cases())
def test_same_grammar_as_cel(path: str, text: str, allowed: bool) -> None:
    parse = {"model": parse_model_uri, "dataset": parse_dataset_uri, "output": parse_output_uri}[path.split(".")[1]]
    if allowed:
        assert parse(text)
    else:
        with pytest.raises(URIError):
            parse(text)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("https://h.example.com/a/rows.jsonl?X-Amz-Signature=s3cret&x=1", "https://h.example.com/a/rows.jsonl"),
        ("https://h.example.com/rows.jsonl#s3cret", "https://h.example.com/rows.jsonl"),
        ("s3://bucket/a/", "s3://bucket/a/"),
        ("", ""),
    ],
)
def test_what_is_shown_of_a_uri(uri: str, expected: str) -> None:
    assert shown(uri) == expected


def test_a_refusal_never_shows_a_query() -> None:
    for text in ("https://h.example.com/../a?sig=s3cret", "http://h.example.com/a?sig=s3cret"):
        with pytest.raises(URIError, match=r"h\.example\.com") as caught:
            parse_dataset_uri(text)
        assert "s3cret" not in str(caught.value)
