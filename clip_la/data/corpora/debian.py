"""Files of Debian packages: from the installed package, or unpacked from the .deb, which needs no root."""

import os
import subprocess
import sys
from pathlib import Path
from shutil import which

from clip_la.errors import UserError


def cache_folder() -> Path:
    """Where downloads and compiled code are kept.

    `$CLIP_LA_CACHE`, else `$XDG_CACHE_HOME/clip_la`, else `~/.cache/clip_la`.
    """
    if own := os.environ.get("CLIP_LA_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clip_la"


def package_files(package: str, path: str, given: Path | None = None, option: str = "--from") -> Path:
    """The folder `path` (such as "usr/share/tuxpaint/stamps") of a Debian package.

    Looked for in `given` (an unpacked package, or the folder itself), then on this system, then in the cache; if it is
    nowhere, the package is downloaded with `apt-get download` into the cache and unpacked there. `option` is the
    command's option for `given`, for messages.

    Raises:
        UserError: `given` does not hold it, there is no apt-get, or the download failed.
    """
    found = find_package_files(package, path, given)
    if found is None and given is not None:
        raise UserError(f"{given} is no folder; name the one that {package} was unpacked to")
    if found is None:
        _download(package, option)
        found = find_package_files(package, path)
    if found is None:
        raise UserError(f"the package {package} holds no {path}; its layout has changed")
    return found


def find_package_files(package: str, path: str, given: Path | None = None) -> Path | None:
    """The folder that `package_files` gives, if nothing need be downloaded for it."""
    # What the system has is used before what an earlier call fetched: it is what the user keeps up to date.
    cached = cache_folder() / "debian" / package
    places = (Path("/") / path, cached / path) if given is None else (given / path, given)
    return next((folder for folder in places if folder.is_dir()), None)


def _download(package: str, option: str) -> None:
    if which("apt-get") is None or which("dpkg-deb") is None:
        raise UserError(
            f"the Debian package {package} is not installed and there is no apt-get here; unpack it elsewhere "
            f"(apt-get download {package}; dpkg-deb -x {package}_*.deb FOLDER) and give {option} FOLDER"
        )
    folder = cache_folder() / "debian" / package
    folder.mkdir(parents=True, exist_ok=True)
    print(f"downloading the Debian package {package} to {folder}", file=sys.stderr)

    def run(*command: str) -> None:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if result.returncode:
            reason = next(iter(result.stderr.strip().splitlines()), f"exit code {result.returncode}")
            raise UserError(f"cannot get the Debian package {package}: {' '.join(command[:2])}: {reason}")

    run("apt-get", "download", package)
    # The archive's name holds a version that is not known before.
    for archive in sorted(folder.glob("*.deb")):
        run("dpkg-deb", "-x", archive.name, ".")
        archive.unlink()
