"""What is told holds no credential: not of a URL, not of a header, not of the environment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.runtime.redaction import redacted, shown


@pytest.mark.parametrize(
    ("text", "told"),
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
def test_credentials_are_taken_out_and_nothing_else(text: str, told: str) -> None:
    assert redacted(text, {}) == told


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
def test_what_is_secret_in_the_environment_is_taken_out_wherever_it_stands(environment: dict[str, str]) -> None:
    assert redacted("a header 's3cr3t-token' was refused", environment) == "a header '…' was refused"


def test_a_short_word_in_the_environment_is_no_secret() -> None:
    assert redacted("the file a is not there", {"HF_TOKEN": "a"}) == "the file a is not there"


def test_a_secret_that_begins_another_does_not_leave_its_end() -> None:
    assert redacted("of s3cr3t-long", {"HF_TOKEN": "s3cr3t", "http_proxy": "http://me:s3cr3t-long@proxy"}) == "of …"


def test_a_url_is_shown_without_its_password_query_and_fragment() -> None:
    told = shown("https://me:secret@host:8080/a/b.txt?sig=secret#secret")
    assert told.startswith("https://host:8080/a/b.txt?…")
    assert "secret" not in told


def test_two_queries_stay_two_urls_and_two_passwords_do_not() -> None:
    assert shown("http://host/a?n=1") != shown("http://host/a?n=2")
    assert shown("http://host/a?n=1") == shown("http://me:secret@host/a?n=1")
    assert shown(shown("http://host/a")) == "http://host/a"


def test_a_query_of_any_characters_is_shown() -> None:
    assert "\udc80" not in shown("http://host/a?\udc80")


SECRET = st.text("abcdefghijkABC0123456789-._~%!$&*+;:@", min_size=6, max_size=20).map(lambda text: f"S3{text}T9")


@given(SECRET, SECRET)
def test_whatever_a_password_and_a_signature_are_made_of_they_are_not_told(password: str, signature: str) -> None:
    told = redacted(f"error: http://me:{password}@host/a/b.txt?sig={signature}: no such file", {})
    assert password not in told
    assert signature not in told
    assert "host/a/b.txt" in told
