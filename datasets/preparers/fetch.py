"""Packages by name and version, fetched by the registries' own clients into a cache that never holds half a file."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, cast

from ...errors import FetchError
from ...progress import working
from ...units import Report
from ..writing import whole_file

CLIENT_TIMEOUT_S = 3600
ENDINGS = {"npm": ".tgz", "pypi": ".whl", "debian": ".deb"}


@dataclass(frozen=True, kw_only=True)
class Package:
    """A file of a package registry. An empty `sha256` leaves the check to the client (apt checks Debian's signature).

    `version` is exact for npm and PyPI. Debian offers one version per release: there it is the one that was tested.
    """

    registry: Literal["npm", "pypi", "debian"]
    name: str
    version: str
    sha256: str = ""
    megabytes: float = 0.0

    def __str__(self) -> str:
        sign = {"npm": "@", "pypi": "==", "debian": "="}[self.registry]
        return f"{self.registry} package {self.name}{sign}{self.version}"

    @property
    def command(self) -> list[str]:
        """The client's command that downloads the package's file to the working folder and runs none of its code."""
        if self.registry == "npm":
            return ["npm", "pack", "--ignore-scripts", f"{self.name}@{self.version}"]
        if self.registry == "pypi":
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
            return [*pip, f"{self.name}=={self.version}"]
        return ["apt-get", "download", self.name]

    @property
    def file_name(self) -> str:
        plain = re.sub(r"[^A-Za-z0-9.]+", "-", f"{self.name}-{self.version}").strip("-")
        return f"{self.registry}-{plain}{ENDINGS[self.registry]}"


def cache_folder() -> Path:
    """$CURATE_CACHE, else ~/.cache/curate/packages."""
    return Path(os.environ.get("CURATE_CACHE") or Path.home() / ".cache" / "curate" / "packages")


def cached(package: Package) -> Path | None:
    """The package's file where the cache has it with the right sha256, else None."""
    path = cache_folder() / package.file_name
    if not path.is_file() or (package.sha256 and sha256_of(path) != package.sha256):
        return None
    return path


def fetch(package: Package, report: Report = print) -> Path:
    """The package's file in the cache, fetched by its client if it is not there yet.

    Raises FetchError, naming the package and the command, where the client is missing or fails, and where the
    file's sha256 is not the expected one; the cache is then unchanged.
    """
    found = cached(package)
    if found is not None:
        return found
    destination = cache_folder() / package.file_name
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise FetchError(f"{destination.parent}: cannot make the package cache ({e}); set CURATE_CACHE") from None
    size = f" ({package.megabytes:g} MB)" if package.megabytes else ""
    report(f"fetching {package}{size}")
    with (
        whole_file(destination) as partial,
        tempfile.TemporaryDirectory(prefix=".fetching-", suffix=".partial", dir=destination.parent) as scratch,
    ):
        with working(report, f"fetching {package}"):
            _run_client(package, Path(scratch))
        files = [f for f in Path(scratch).iterdir() if f.suffix == destination.suffix]
        if len(files) != 1:
            left = ", ".join(sorted(f.name for f in Path(scratch).iterdir())) or "nothing"
            raise FetchError(
                f"{package}: '{_shown(package)}' left {left}, expected one file ending in {destination.suffix}"
            )
        actual = sha256_of(files[0])
        if package.sha256 and actual != package.sha256:
            raise FetchError(
                f"{package}: '{_shown(package)}' gave a file with sha256 {actual}, expected {package.sha256}; "
                "the registry or mirror in use offers another file under this name, so it was not kept"
            )
        os.replace(files[0], partial)
    return destination


def provenance(package: Package, path: Path) -> dict[str, str]:
    """What prepared.json keeps of a fetched package: registry, name, the version and sha256 of the file itself."""
    version = package.version
    if package.registry == "debian":
        version = _output_of(["dpkg-deb", "--field", str(path), "Version"], package).strip()
    return {"registry": package.registry, "name": package.name, "version": version, "sha256": sha256_of(path)}


@contextmanager
def open_package(package: Package, path: Path) -> Iterator[tarfile.TarFile]:
    """The files inside an npm or Debian package as a tar stream: read once, in order, nothing unpacked on disk."""
    if package.registry == "npm":
        try:
            with tarfile.open(path, mode="r|gz") as tar:
                yield tar
        except (tarfile.TarError, EOFError, OSError) as e:
            raise FetchError(f"{package}: {path} cannot be read ({e}); remove it and run again") from None
        return
    command = ["dpkg-deb", "--fsys-tarfile", str(path)]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except FileNotFoundError:
        raise FetchError(f"{package}: 'dpkg-deb' is not on this machine; {_missing_client('dpkg-deb')}") from None
    try:
        with tarfile.open(fileobj=cast(IO[bytes], process.stdout), mode="r|") as tar:
            yield tar
    except (tarfile.TarError, EOFError) as e:
        raise FetchError(f"{package}: {path} cannot be read ({e}); remove it and run again") from None
    finally:
        cast(IO[bytes], process.stdout).close()
        process.kill()
        process.wait()


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run_client(package: Package, folder: Path) -> None:
    by_hand = f"; or put the file at {cache_folder() / package.file_name} yourself"
    try:
        done = subprocess.run(
            package.command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CLIENT_TIMEOUT_S,
        )
    except FileNotFoundError:
        client = package.command[0]
        raise FetchError(f"{package}: '{client}' is not on this machine; {_missing_client(client)}{by_hand}") from None
    except subprocess.TimeoutExpired:
        raise FetchError(f"{package}: '{_shown(package)}' did not end within {CLIENT_TIMEOUT_S} s{by_hand}") from None
    if done.returncode:
        what = f"'{_shown(package)}' ended with {done.returncode}: {telling_lines(done.stdout + done.stderr)}"
        advice = "; run 'apt-get update' first where the package lists are old" if package.registry == "debian" else ""
        raise FetchError(f"{package}: {what}{advice}{by_hand}")


def telling_lines(output: str) -> str:
    """The first three lines of a client's output that name an error, else its last three, on one line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(?i)(npm error|error|e:)\b|.*\bno module named", line)]
    return " | ".join(errors[:3] or lines[-3:]) or "no output"


def _output_of(command: list[str], package: Package) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise FetchError(f"{package}: '{command[0]}' is not on this machine; {_missing_client(command[0])}") from None
    except subprocess.CalledProcessError as e:
        raise FetchError(f"{package}: '{' '.join(command)}' failed: {telling_lines(e.stderr)}") from None


def _missing_client(client: str) -> str:
    if client == "npm":
        return "it comes with Node.js"
    return "this data needs a Debian or Ubuntu machine, or such a container"


def _shown(package: Package) -> str:
    return " ".join(["python" if part == sys.executable else part for part in package.command])
