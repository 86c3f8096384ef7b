"""Settings of S3 that cannot work: named at once, before anything is asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from miga.errors import InputError, OutputError
from pipeline.storage.addresses import check_address
from pipeline.storage.open import open_storage
from pipeline.storage.s3_settings import check_s3_settings

SECRET = "wJalrXUtnFEMI-K7MDENG"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment that says all that is needed, and a home with nothing in it."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy") or name == "REQUESTS_CA_BUNDLE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    (tmp_path / ".aws").mkdir()
    return tmp_path


def fault() -> str:
    """What is said, by OUT and by the prompts alike."""
    with pytest.raises(OutputError) as caught:
        open_storage("s3://bucket/run")
    with pytest.raises(InputError) as of_prompts:
        check_address("s3://bucket/p.jsonl", InputError, "prompts")
    assert str(of_prompts.value) == str(caught.value)
    assert caught.value.hint
    assert SECRET not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE\n", "ends in a line break"),
        ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE\r", "ends in a line break"),
        ("AWS_ACCESS_KEY_ID", "AKIA\tEXAMPLE", "control character"),
        ("AWS_ACCESS_KEY_ID", " AKIAEXAMPLE", "begins or ends with a space"),
        ("AWS_ACCESS_KEY_ID", "AKIAÉXAMPLE", "ASCII"),
        ("AWS_ACCESS_KEY_ID", os.fsdecode(b"AKIA\xff"), "no UTF-8"),
        ("AWS_SECRET_ACCESS_KEY", f"{SECRET}\n", "ends in a line break"),
        ("AWS_SECRET_ACCESS_KEY", f"{SECRET[:5]}\n{SECRET}", "control character"),
        ("AWS_SECRET_ACCESS_KEY", f"{SECRET} ", "begins or ends with a space"),
        ("AWS_SESSION_TOKEN", f"{SECRET}\r\n", "ends in a line break"),
        ("AWS_SESSION_TOKEN", f"{SECRET}\x7f", "control character"),
        ("AWS_DEFAULT_REGION", "us-east-1\n", "ends in a line break"),
        ("AWS_DEFAULT_REGION", "us east 1", "no region's name"),
        ("AWS_DEFAULT_REGION", "us_east_1", "no region's name"),
        ("AWS_PROFILE", "mine\n", "ends in a line break"),
        ("AWS_PROFILE", "no-such-profile", "names the profile 'no-such-profile', which is not there"),
        ("AWS_DEFAULT_PROFILE", "no-such-profile", "names the profile 'no-such-profile', which is not there"),
        ("AWS_ENDPOINT_URL", "http://host:9000\n", "ends in a line break"),
        ("AWS_ENDPOINT_URL", "localhost:9000", "http:// or https:// is missing"),
        ("AWS_ENDPOINT_URL_S3", "localhost:9000", "http:// or https:// is missing"),
        ("AWS_ENDPOINT_URL", "localhost", "http:// or https:// is missing"),
        ("AWS_ENDPOINT_URL", "//localhost:9000", "http:// or https:// is missing"),
        ("AWS_ENDPOINT_URL", "http:/localhost:9000", "http:// or https:// is missing"),
        ("AWS_ENDPOINT_URL", "://localhost:9000", "begins with http:// or https://"),
        ("AWS_ENDPOINT_URL", "http://", "names no host"),
        ("AWS_ENDPOINT_URL", "ftp://host", "begins with http:// or https://"),
        ("AWS_ENDPOINT_URL", "s3://bucket", "begins with http:// or https://"),
        ("AWS_ENDPOINT_URL", "http://host:port", "no address of a server"),
        ("AWS_ENDPOINT_URL", "http://host:99999", "no address of a server"),
        ("AWS_ENDPOINT_URL", "http://my_host:9000", "no address of a server"),
        ("AWS_ENDPOINT_URL", "http://ho st", "no address of a server"),
        ("AWS_ENDPOINT_URL", "http://host/?x=1", "no address of a server"),
        ("AWS_ENDPOINT_URL", f"http://user:{SECRET}@host", "a user or a password"),
        ("AWS_CA_BUNDLE", "/no/such/file.pem", "there is no such file"),
        ("AWS_CA_BUNDLE", "", "it is empty"),
        ("AWS_CA_BUNDLE", "/", "it "),
        ("AWS_CA_BUNDLE", __file__, "it holds no certificates"),
        ("REQUESTS_CA_BUNDLE", "/no/such/file.pem", "there is no such file"),
        ("HTTPS_PROXY", "socks5://host:1080", "socks5:// proxy"),
        ("https_proxy", "http://host:port", "no address of a proxy"),
        ("https_proxy", "http://:3128", "no address of a proxy"),
        ("HTTPS_PROXY", f"http://user:{SECRET}@host:port", "no address of a proxy"),
        ("HTTPS_PROXY", "http://host:3128\n", "ends in a line break"),
    ],
)
def test_a_variable_that_cannot_work_is_named(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    text = fault()
    assert text.startswith(name)
    assert said in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_ENDPOINT_URL", "http://localhost:9000"),
        ("AWS_ENDPOINT_URL", "HTTPS://host.example/base/"),
        ("AWS_ENDPOINT_URL", "http://[::1]:9000"),
        ("AWS_ENDPOINT_URL", ""),
        ("HTTPS_PROXY", "proxy.example:3128"),
        ("HTTPS_PROXY", f"http://user:{SECRET}@proxy.example:3128"),
        ("HTTP_PROXY", "socks5://not-for-https"),
        ("NO_PROXY", " a.example, b.example "),
        ("AWS_DEFAULT_REGION", "eu-central-1"),
        ("AWS_DEFAULT_REGION", "garage"),
        ("AWS_SECRET_ACCESS_KEY", "a secret/with+all~kinds é"),
        ("AWS_CONFIG_FILE", "/no/such/file"),
    ],
)
def test_what_may_be_set(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    check_s3_settings(OutputError)


def test_the_more_special_variable_is_the_one_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://localhost:9000")
    check_s3_settings(OutputError)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    check_s3_settings(OutputError)


def test_a_proxy_that_is_bypassed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9000")
    monkeypatch.setenv("http_proxy", "socks5://host:1080")
    assert fault().startswith("http_proxy")
    monkeypatch.setenv("no_proxy", "localhost")
    check_s3_settings(OutputError)


@pytest.mark.parametrize("left", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_half_of_a_pair(left: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (gone,) = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} - {left}
    monkeypatch.delenv(gone)
    assert fault().startswith(f"{left} is set, but {gone} is not")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[default\n", "cannot be read as a config file"),
        ("no section = 1\n", "cannot be read as a config file"),
        (b"[default]\nregion = \xff\n", "cannot be read as a config file"),
        ("[default]\nregion = us east\n", "region (in ~/.aws/config) is 'us east'"),
        ("[default]\nendpoint_url = localhost:9000\n", "endpoint_url (in ~/.aws/config) is 'localhost:9000'"),
        (
            "[default]\nservices = mine\n[services mine]\ns3 =\n  endpoint_url = localhost:1\n",
            "endpoint_url (in ~/.aws/config) is 'localhost:1'",
        ),
        ("[default]\nca_bundle = /no/such/file\n", "ca_bundle (in ~/.aws/config) is '/no/such/file'"),
    ],
)
def test_config_files(content: str | bytes, said: str, home: Path) -> None:
    (home / ".aws" / "config").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert said in fault()
    (home / ".aws" / "config").write_text("[default]\nregion = us-east-1\n")
    check_s3_settings(OutputError)


def test_profiles_that_are_there_are_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".aws" / "credentials").write_text("[alpha]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_PROFILE", "beta")
    assert "there are: alpha" in fault()
    monkeypatch.setenv("AWS_PROFILE", "alpha")
    check_s3_settings(OutputError)


@pytest.mark.parametrize("name", ["AWS_DEFAULTS_MODE", "AWS_S3_US_EAST_1_REGIONAL_ENDPOINT"])
def test_what_only_the_client_refuses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "nonsense")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(OutputError, match="no client can be made") as caught:
        open_storage("s3://bucket/run", patience_s=0.0).exists("a")
    assert "AWS_" in caught.value.hint


COMMANDS = (["status"], ["gc"])


def test_commands_say_which_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs.cli import main

    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    (tmp_path / "one.jsonl").write_text('{"prompt": "a red circle"}\n')
    generate = ["generate", str(tmp_path / "one.jsonl"), "s3://bucket/run", "--num-frames", "45", "--dry-run"]
    for command in (generate, *([name, "s3://bucket/run", *rest] for name, *rest in COMMANDS)):
        assert main(command) == 2, command
        said = capsys.readouterr().err
        assert said.startswith("miga: AWS_ENDPOINT_URL is 'localhost:9000'"), said
        assert "choose another OUT" not in said


def test_nothing_of_it_is_asked_for_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    open_storage(tmp_path / "out").write_bytes("a", b"1")
    command = (
        "import sys; from pipeline.storage.open import open_storage as o; o('x'); print('botocore' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
