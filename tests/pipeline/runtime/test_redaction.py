"""Redacted text contains no credentials from URLs, headers or the environment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.runtime.redaction import redact, redact_url


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see http://me:secret@host/a.txt", "see http://host/a.txt"),
        ("see http://me:se@cret@host/a.txt", "see http://host/a.txt"),
        ("see https://secret@host:8080/a.txt", "see https://host:8080/a.txt"),
        ("see https://host/a?X-Amz-Signature=secret&b=1 now", "see https://host/a?… now"),
        ("see HTTPS://host/a?sig=secret", "see HTTPS://host/a?…"),
        ("(https://host/a?sig=se(cr)'et)", "(https://host/a?…"),
        (
            "Max retries exceeded with url: /a/b?sig=secret (Caused by",
            "Max retries exceeded with url: /a/b?… (Caused by",
        ),
        ("the token hf_secretsecret", "the token hf_…"),
        ("Authorization: Bearer abcdefgh.ijk", "Authorization: Bearer …"),
        ("Authorization: Basic c2VjcmV0OnNlY3JldA==", "Authorization: Basic …"),
        ("https://host/a@b.txt", "https://host/a@b.txt"),
        ("what? no, 1=1", "what? no, 1=1"),
        ("artifacts/raw/pile: is it there?", "artifacts/raw/pile: is it there?"),
    ],
)
def test_only_credentials_are_removed(text: str, expected: str) -> None:
    assert redact(text, {}) == expected


@pytest.mark.parametrize(
    "environment",
    [
        {"HF_TOKEN": "s3cr3t-token"},
        {"HF_TOKEN": " s3cr3t-token\n"},
        {"HUGGING_FACE_HUB_TOKEN": "s3cr3t-token"},
        {"HTTPS_PROXY": "http://me:s3cr3t-token@proxy:3128"},
        {"all_proxy": "me:s3cr3t-token@proxy:3128"},
        {"http_proxy": "http://me:s3cr3t%2Dtoken@proxy:3128"},
    ],
)
def test_secrets_of_the_environment_are_removed(environment: dict[str, str]) -> None:
    assert redact("a header 's3cr3t-token' was refused", environment) == "a header '…' was refused"


def test_short_value_in_the_environment_is_kept() -> None:
    assert redact("the file a is not there", {"HF_TOKEN": "a"}) == "the file a is not there"


def test_secret_that_is_prefix_of_another_is_removed_completely() -> None:
    assert redact("of s3cr3t-long", {"HF_TOKEN": "s3cr3t", "http_proxy": "http://me:s3cr3t-long@proxy"}) == "of …"


def test_shown_url_has_no_password_query_or_fragment() -> None:
    url = redact_url("https://me:secret@host:8080/a/b.txt?sig=secret#secret")
    assert url.startswith("https://host:8080/a/b.txt?…")
    assert "secret" not in url


def test_shown_urls_differ_by_query_and_not_by_password() -> None:
    assert redact_url("http://host/a?n=1") != redact_url("http://host/a?n=2")
    assert redact_url("http://host/a?n=1") == redact_url("http://me:secret@host/a?n=1")
    assert redact_url(redact_url("http://host/a")) == "http://host/a"


def test_query_with_surrogate_is_shown() -> None:
    assert "\udc80" not in redact_url("http://host/a?\udc80")


SECRET = st.text("abcdefghijkABC0123456789-._~%!$&*+;:@", min_size=6, max_size=20).map(lambda text: f"S3{text}T9")


@given(SECRET, SECRET)
def test_any_password_and_signature_are_removed(password: str, signature: str) -> None:
    text = redact(f"error: http://me:{password}@host/a/b.txt?sig={signature}: no such file", {})
    assert password not in text
    assert signature not in text
    assert "host/a/b.txt" in text
