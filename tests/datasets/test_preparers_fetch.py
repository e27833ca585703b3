import hashlib
import os
import sys
import tarfile
from pathlib import Path

import pytest
from curate.datasets.preparers import fetch as fetching
from curate.datasets.preparers.fetch import Package, cached, fetch, open_package, telling_lines
from curate.errors import FetchError

CONTENT = b"the package's bytes"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CURATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def client(tmp_path, monkeypatch):
    """Puts a shell script before the real npm and apt-get."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def install(script: str, name: str = "npm") -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return install


def package(sha256: str = SHA256, registry="npm", name="@scope/pictures", version="1.2.3") -> Package:
    return Package(registry=registry, name=name, version=version, sha256=sha256)


def quiet(line: str) -> None:
    pass


def test_a_package_is_fetched_once_and_then_comes_from_the_cache(cache, client):
    client(f'echo "$@" > {cache}/../arguments; printf "%s" "{CONTENT.decode()}" > scope-pictures-1.2.3.tgz')
    path = fetch(package(), quiet)
    assert path == cache / "npm-scope-pictures-1.2.3.tgz"
    assert path.read_bytes() == CONTENT
    assert (cache.parent / "arguments").read_text().split() == ["pack", "--ignore-scripts", "@scope/pictures@1.2.3"]
    client("exit 7")
    assert fetch(package(), quiet) == path


def test_a_wrong_sha256_is_refused_and_nothing_is_left(cache, client):
    client("echo other > scope-pictures-1.2.3.tgz")
    with pytest.raises(FetchError) as error:
        fetch(package(), quiet)
    assert hashlib.sha256(b"other\n").hexdigest() in str(error.value) and SHA256 in str(error.value)
    assert list(cache.iterdir()) == []


def test_a_damaged_cached_file_is_fetched_again(cache, client):
    client(f'printf "%s" "{CONTENT.decode()}" > scope-pictures-1.2.3.tgz')
    path = fetch(package(), quiet)
    path.write_bytes(CONTENT[:5])
    assert cached(package()) is None
    assert fetch(package(), quiet).read_bytes() == CONTENT


def test_a_failing_client_is_named_with_its_package_and_what_came_out(cache, client):
    client(
        "echo half > scope-pictures-1.2.3.tgz; echo 'npm error code E404' >&2; echo 'a log is somewhere' >&2; exit 3"
    )
    with pytest.raises(FetchError) as error:
        fetch(package(), quiet)
    message = str(error.value)
    assert "npm package @scope/pictures@1.2.3" in message
    assert "'npm pack --ignore-scripts @scope/pictures@1.2.3' ended with 3: npm error code E404;" in message
    assert list(cache.iterdir()) == []


def test_a_failing_apt_is_told_to_update(cache, client):
    client("echo 'E: Unable to locate package openclipart-png' >&2; exit 100", "apt-get")
    with pytest.raises(FetchError, match=r"apt-get download clip' ended with 100: E: Unable.*run 'apt-get update'"):
        fetch(package("", "debian", "clip"), quiet)


@pytest.mark.parametrize(("registry", "client_name"), [("npm", "npm"), ("debian", "apt-get")])
def test_a_missing_client_is_said(cache, monkeypatch, tmp_path, registry, client_name):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match=f"'{client_name}' is not on this machine"):
        fetch(package(registry=registry), quiet)


def test_a_client_that_leaves_nothing_is_an_error(cache, client):
    client("exit 0")
    with pytest.raises(FetchError, match=r"left nothing, expected one file ending in \.tgz"):
        fetch(package(), quiet)


def test_pip_is_run_by_this_python_and_builds_nothing():
    command = package(registry="pypi", name="labels").command
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "labels==1.2.3"} <= set(command)


def test_a_cut_archive_is_a_fetch_error(tmp_path):
    whole, cut = tmp_path / "whole.tgz", tmp_path / "cut.tgz"
    (tmp_path / "file").write_bytes(os.urandom(100_000))
    with tarfile.open(whole, "w:gz") as tar:
        tar.add(tmp_path / "file", "package/file")
    cut.write_bytes(whole.read_bytes()[:50_000])
    with open_package(package(), whole) as tar:
        assert [member.name for member in tar] == ["package/file"]
    with pytest.raises(FetchError, match=r"cut\.tgz cannot be read"), open_package(package(), cut) as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            file.read()


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            "npm notice\nnpm error code E404\nnpm error 404 Not Found\nlast",
            "npm error code E404 | npm error 404 Not Found",
        ),
        ("a\nb\n\nc\nd\n", "b | c | d"),
        ("", "no output"),
        ("/usr/bin/python: No module named pip", "/usr/bin/python: No module named pip"),
    ],
)
def test_the_telling_lines_of_a_clients_output(output, expected):
    assert telling_lines(output) == expected


def test_the_cache_is_in_the_home_folder_unless_set(monkeypatch, tmp_path):
    monkeypatch.delenv("CURATE_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetching.cache_folder() == tmp_path / ".cache/curate/packages"
