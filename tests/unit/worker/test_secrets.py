"""Secrets that jobs name: where they come from, and that what is printed does not show them."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import MissingSecret
from orchestrator.worker.output import OutputCapture
from orchestrator.worker.redactor import HIDDEN, LONGEST, Redactor
from orchestrator.worker.secret_files import read_secrets, without_secrets


def keep(root: Path, tenant: str, name: str, content: bytes, *, mode: int = 0o600) -> Path:
    path = root / tenant / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_secret_is_the_content_of_the_tenants_file(tmp_path: Path) -> None:
    keep(tmp_path, "blue", "HF_TOKEN", b"of blue\n")
    keep(tmp_path, "red", "HF_TOKEN", b"of red")

    assert read_secrets(tmp_path, "blue", ["HF_TOKEN"], environment={}) == {"HF_TOKEN": "of blue"}
    assert read_secrets(tmp_path, "red", ["HF_TOKEN"], environment={}) == {"HF_TOKEN": "of red"}


def test_the_default_tenants_may_be_variables_of_the_worker(tmp_path: Path) -> None:
    environment = {"JOB_SECRET_HF_TOKEN": "v", "PATH": "/bin"}

    assert read_secrets(tmp_path, "default", ["HF_TOKEN"], environment=environment) == {"HF_TOKEN": "v"}
    with pytest.raises(MissingSecret):
        read_secrets(tmp_path, "blue", ["HF_TOKEN"], environment=environment)
    assert without_secrets(environment) == {"PATH": "/bin"}


@pytest.mark.parametrize("tenant", ["..", "."])
def test_a_tenants_name_is_not_a_way_to_another_place(tmp_path: Path, tenant: str) -> None:
    keep(tmp_path, "secrets", "A", b"own")
    keep(tmp_path, "", "A", b"outside")

    with pytest.raises(MissingSecret):
        read_secrets(tmp_path / "secrets", tenant, ["A"], environment={})


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (b"value", 0o604, "chmod"),
        (b"", 0o600, "empty"),
        (b"\n", 0o600, "empty"),
        (b"a\0b", 0o600, "NUL"),
        (b"x" * 70_000, 0o600, "at most"),
    ],
    ids=["others may read it", "empty", "an empty line", "NUL", "too large"],
)
def test_what_cannot_be_used_is_told_without_its_value(tmp_path: Path, content: bytes, mode: int, words: str) -> None:
    keep(tmp_path, "blue", "A", content, mode=mode)

    with pytest.raises(MissingSecret, match=words) as caught:
        read_secrets(tmp_path, "blue", ["A"], environment={})
    assert "value" not in str(caught.value)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "blue").mkdir()
    os.mkfifo(tmp_path / "blue" / "A", 0o600)

    with pytest.raises(MissingSecret, match="not a file"):
        read_secrets(tmp_path, "blue", ["A"], environment={})


SECRETS = st.lists(st.text(alphabet="abc", min_size=4, max_size=9), min_size=1, max_size=4)


@given(SECRETS, st.lists(st.text(alphabet="abcx", max_size=12), max_size=12))
def test_a_split_stream_is_hidden_as_the_whole_text_is(values: list[str], chunks: list[str]) -> None:
    redactor = Redactor(values)
    whole = re.compile(b"|".join(value.encode() for value in sorted(set(values), key=lambda one: (-len(one), one))))

    shown = b"".join([*(redactor.feed(chunk.encode()) for chunk in chunks), redactor.end()])

    assert shown == whole.sub(HIDDEN, "".join(chunks).encode())


def test_what_cannot_be_a_beginning_is_shown_at_once() -> None:
    redactor = Redactor(["hunter22"])

    assert redactor.feed(b"step 1\n") == b"step 1\n"
    assert redactor.feed(b"hun") == b""
    assert redactor.feed(b"dred") == b"hundred"


def test_of_a_key_of_several_lines_each_line_is_hidden() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQEF\n-----END KEY-----"
    redactor = Redactor([key, "x" * (LONGEST + 1), "abc"])

    assert redactor.feed(b"first kqhkiG9w0BAQEF\n" + key.encode() + b"\nabc\n") == b"first ***\n***\nabc\n"


def test_what_a_job_prints_is_kept_without_the_value() -> None:
    capture = OutputCapture(head_bytes=10, tail_bytes=30)
    capture.hide(["s3cr3t-value"])
    for piece in (b"head s3cr", b"3t-value then more and more and s3cr3t-va", b"lue at the end s3cr3t-v"):
        capture.feed(piece)

    text = "".join(chunk for _number, chunk in capture.drain(ended=True))

    assert "s3cr3t-value" not in text
    assert text.startswith("head ***")
    assert text.endswith("*** at the end s3cr3t-v")
