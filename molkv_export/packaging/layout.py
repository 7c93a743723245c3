"""Lay out the bundle of a package, as one folder or as asset packs (Android), and check the app store's limits."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from molkv_bundle import MANIFEST, BundleError, Manifest, RequestError, decode_json, is_system_file, read_bytes
from molkv_export.terminal import human_bytes

Platform = Literal["android", "ios", "native", "web"]
GraphFormat = Literal["onnx", "ort"]

README = "README.md"
DATA = "molkv-package.json"
PROGRAMS = "runtimes"  # folder of the driver and its library for the platform
EXAMPLE = "example"  # folder of the example
BUNDLE = "molkv.bundle"  # folder of the bundle, where there are no asset packs
WEB_BUNDLE = "bundle"  # the same in a site; the page asks for this name

_PACKS = "asset-packs"
_ASSETS = "src/main/assets/molkv"  # path in a pack; the app sees the assets of all packs as one folder


class Limits(NamedTuple):
    """Size limits of a package, in bytes.

    App stores count compressed sizes. Compression makes experts hardly smaller, so uncompressed sizes are used here.
    """

    file: int  # one file
    pack: int  # one asset pack, which is uploaded and downloaded as a whole
    upfront: int  # everything installed with the app
    later: int  # everything downloaded after the install

    @property
    def shard(self) -> int:
        """Largest size of a new shard, chosen so that a whole number of shards fills a pack."""
        return self.pack // -(-self.pack // self.file)


LIMITS: dict[Platform, Limits] = {
    # Play Console help, "Optimize your app's size and stay within Google Play app size limits": 1.5 GB for an asset
    # pack, 4 GB for all modules and install-time packs (up to 200 MB of this for the base module), 4 GB for all other
    # packs. The limit for a file is our choice: a 32-bit process can map such a file, and a phone has space for a copy.
    "android": Limits(file=512 * 1024**2, pack=1_500_000_000, upfront=3_800_000_000, later=4_000_000_000),
    # App Store Connect help, "On-demand resources size limits": from iOS 18 on 4 GB for the app, 8 GB for an asset
    # pack, 70 GB for all packs (before iOS 18: 2 GB, 512 MB and 20 GB).
    "ios": Limits(file=4_000_000_000, pack=4_000_000_000, upfront=4_000_000_000, later=70_000_000_000),
    "native": Limits(file=sys.maxsize, pack=sys.maxsize, upfront=sys.maxsize, later=0),
    "web": Limits(file=sys.maxsize, pack=sys.maxsize, upfront=sys.maxsize, later=0),
}


class AppFolder(msgspec.Struct, frozen=True):
    """A folder that goes into the app as a whole: an asset pack (Android) or the bundle."""

    name: str
    folder: str  # folder of its files, relative to the package
    delivery: str  # "install-time" or "fast-follow" for an asset pack, else empty
    files: dict[str, int]  # bytes by file name

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(self.files.values())

    @property
    def build_file(self) -> str:
        """Path of the build file of an asset pack, relative to the package."""
        return f"{_PACKS}/{self.name}/build.gradle.kts"


class PackagedGraph(msgspec.Struct, frozen=True):
    """The file of a graph; a file in ORT format includes the weights."""

    file: str
    length: int  # positions in one call; 0: any number
    size: int  # bytes


class PackageInfo(msgspec.Struct, frozen=True):
    """Description of a package, which is also written into the package as `molkv-package.json`."""

    target: Platform
    profile: str
    graph_format: GraphFormat
    graphs: list[PackagedGraph]
    parts: list[AppFolder]
    programs: list[str]  # paths of the driver, its library for the platform and the example; or of the web page
    others: list[str]  # files that do not go into the app
    notes: list[str]  # what the app cannot do with this bundle, and choices that the caller did not make

    @property
    def size(self) -> int:
        """Bytes of all files that go into the app."""
        return sum(part.size for part in self.parts)


def one_folder(sizes: dict[str, int], name: str = BUNDLE) -> list[AppFolder]:
    """Return a single folder with all files."""
    return [AppFolder(name=name, folder=name, delivery="", files=sizes)]


def check_total(bundle: Path, total: int, limits: Limits) -> None:
    """Check, before any other work, that a package of this size in bytes fits into an app.

    Raises:
        RequestError: The size is above the limit of the app store.
    """
    limit = limits.upfront + limits.later
    if total > limit:
        raise RequestError(
            f"{bundle}: the package would have a size of {human_bytes(total)}, expected at most {human_bytes(limit)}, "
            "the limit of the app store; export with a smaller --experts-dtype"
        )


def check_folders(bundle: Path, parts: list[AppFolder], limits: Limits) -> None:
    """Check the sizes again, after the conversion of graphs and the division into packs.

    Raises:
        RequestError: The total, or the part that is downloaded later, is above the limit of the app store.
    """
    check_total(bundle, sum(part.size for part in parts), limits)
    later = sum(part.size for part in parts if part.delivery == "fast-follow")
    if later > limits.later:
        raise RequestError(
            f"{bundle}: {human_bytes(later)} would be downloaded after the install, expected at most "
            f"{human_bytes(limits.later)}; export with a smaller --experts-dtype"
        )


def asset_packs(sizes: dict[str, int], limits: Limits) -> list[AppFolder]:
    """Divide files into asset packs, in the given order.

    "install-time" packs are present at the first start of the app, and their files can be read in place. So the first
    packs, up to the limit of the app store, are "install-time". The other packs are "fast-follow": they are downloaded
    after the install.
    """
    packs: list[dict[str, int]] = [{}]
    for name, size in sizes.items():
        if sum(packs[-1].values()) + size > limits.pack:
            packs.append({})
        packs[-1][name] = size
    parts, total = [], 0
    for number, files in enumerate(packs, start=1):
        total += sum(files.values())
        name = f"molkv_{number}"
        delivery = "install-time" if total <= limits.upfront else "fast-follow"
        parts.append(AppFolder(name=name, folder=f"{_PACKS}/{name}/{_ASSETS}", delivery=delivery, files=files))
    return parts


def sizes_in_order(manifest: Manifest, folder: Path) -> dict[str, int]:
    """Return the sizes of a bundle's files by name. The manifest is first.

    The shards are last, because the app can load the graphs before the shards are downloaded.
    """
    shards = [shard.file for shard in manifest.experts.shards]
    names = [name for name in manifest.files if name not in shards]
    sizes = {name: manifest.files[name].size for name in (*names, *shards)}
    return {MANIFEST: (folder / MANIFEST).stat().st_size, **sizes}


def move_files(parts: list[AppFolder], content: Path, folder: Path) -> None:
    """Move the files of a bundle into the folders of a package."""
    for part in parts:
        target = folder / part.folder
        target.mkdir(parents=True)
        for name in part.files:
            (content / name).rename(target / name)
    shutil.rmtree(content)


def is_package(folder: Path) -> bool:
    """Return whether a folder holds a package and nothing else."""
    path = folder / DATA
    try:
        info = decode_json(read_bytes(path, BundleError, ""), PackageInfo, path, BundleError)
    except BundleError:
        return False
    known = {folder / name for name in (*info.programs, *info.others)}
    for part in info.parts:
        known |= {folder / part.build_file, *(folder / part.folder / name for name in part.files)}
    return {path for path in folder.rglob("*") if not path.is_dir() and not is_system_file(path)} <= known
