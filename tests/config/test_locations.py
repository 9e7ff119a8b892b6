"""Locations: what is masked in them, and how paths and options go together."""

import pytest

from pipeline.config.locations import inside, is_uri, mask, without_credentials


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/folder", "s3://bucket/folder"),
        ("s3://AKIA1:secret@bucket/folder", "s3://***@bucket/folder"),
        # Pasted without escaping: a slash, an @ and a colon in the secret.
        ("s3://AKIA1:se/c@r:et@bucket/folder", "s3://***@bucket/folder"),
        ("s3://token@bucket/folder", "s3://***@bucket/folder"),
        (
            "cannot open 's3://a:b@c/d' now, nor s3://e/f",
            "cannot open 's3://***@c/d' now, nor s3://e/f",
        ),
        ("abfs://x/y?account_key=abc&region=eu", "abfs://x/y?account_key=***&region=eu"),
        ("x://y?sig=abc", "x://y?sig=***"),
        ("http://host:5000/page", "http://host:5000/page"),
        ("/folder/a@b:c", "/folder/a@b:c"),
    ],
)
def test_secrets_are_masked_and_nothing_else(text: str, expected: str) -> None:
    assert mask(text) == expected


def test_paths_go_in_front_of_the_options() -> None:
    assert inside("s3://b/f?scheme=http", "x/y.yaml") == "s3://b/f/x/y.yaml?scheme=http"
    assert inside("s3://b/f/", "y") == "s3://b/f/y"
    assert inside("folder", "y") == "folder/y"


def test_credentials_are_taken_out() -> None:
    assert without_credentials("s3://a:b@bucket/x?scheme=http") == "s3://bucket/x?scheme=http"
    assert without_credentials("s3://bucket/x@y") == "s3://bucket/x@y"
    assert without_credentials("/home/x@y/z") == "/home/x@y/z"
    assert is_uri("gs://b")
    assert not is_uri("/home/x")
