"""Where the files of a package are, and what of it app stores take: one folder (iOS), or asset packs (Android)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from molkv_bundle import MANIFEST, BundleError, Manifest, RequestError, decode_json, is_system_file, read_bytes
from molkv_export.terminal import human_bytes

Platform = Literal["android", "ios"]
GraphFormat = Literal["onnx", "ort"]

README = "README.md"
DATA = "molkv-package.json"

_PACKS = "asset-packs"
_ASSETS = "src/main/assets/molkv"  # of a pack; in the app, the assets of all packs are one folder


class Limits(NamedTuple):
    """How large a package may be, in bytes. The stores count after compression, which experts hardly yield to."""

    file: int  # any file
    pack: int  # an asset pack, which is uploaded and downloaded as one
    upfront: int  # all that comes with the app
    later: int  # all that is fetched once the app is installed

    @property
    def shard(self) -> int:
        """Largest file of the store, where it is cut anew: as many of them as fill a pack."""
        return self.pack // -(-self.pack // self.file)


LIMITS: dict[Platform, Limits] = {
    # Play Console help, "Optimize your app's size and stay within Google Play app size limits": 1.5 GB for an asset
    # pack, 4 GB for all modules and install-time packs (up to 200 MB of it for the base module), 4 GB for all other
    # packs. The limit for files is ours: even a 32-bit process finds room to map one, and a phone to copy one.
    "android": Limits(file=512 * 1024**2, pack=1_500_000_000, upfront=3_800_000_000, later=4_000_000_000),
    # App Store Connect help, "On-demand resources size limits": from iOS 18 on 4 GB for the app, 8 GB for an asset
    # pack, 70 GB for all packs (before: 2 GB, 512 MB and 20 GB).
    "ios": Limits(file=4_000_000_000, pack=4_000_000_000, upfront=4_000_000_000, later=70_000_000_000),
}


class AppFolder(msgspec.Struct, frozen=True):
    """A folder that goes into the app as one: an asset pack (Android) or the bundle (iOS)."""

    name: str
    folder: str  # where its files are, from the package's folder
    delivery: str  # of an asset pack: "install-time" or "fast-follow"; else empty
    files: dict[str, int]  # bytes

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(self.files.values())

    @property
    def build_file(self) -> str:
        """Where the build file of an asset pack is, from the package's folder."""
        return f"{_PACKS}/{self.name}/build.gradle.kts"


class PackagedGraph(msgspec.Struct, frozen=True):
    """A graph's file, with its weights if it holds them."""

    file: str
    length: int  # positions of a call
    size: int  # bytes


class PackageInfo(msgspec.Struct, frozen=True):
    """What a package holds; it is written into it, too, as `molkv-package.json`."""

    target: Platform
    profile: str
    graph_format: GraphFormat
    half: bool  # whether the graphs take and give float16
    graphs: list[PackagedGraph]
    parts: list[AppFolder]
    others: list[str]  # files that do not go into the app

    @property
    def size(self) -> int:
        """Bytes that go into the app."""
        return sum(part.size for part in self.parts)


def one_folder(name: str, sizes: dict[str, int]) -> list[AppFolder]:
    """Put all files into a folder of this name."""
    return [AppFolder(name=name, folder=name, delivery="", files=sizes)]


def check_total(bundle: Path, total: int, limits: Limits) -> None:
    """Refuse before the work what no app can have.

    Raises:
        RequestError: It is more than the app's store takes.
    """
    limit = limits.upfront + limits.later
    if total > limit:
        raise RequestError(
            f"{bundle}: the package would have {human_bytes(total)}, expected at most {human_bytes(limit)}, all that "
            "the app's store takes; export with a smaller --experts-dtype"
        )


def check_folders(bundle: Path, parts: list[AppFolder], limits: Limits) -> None:
    """Check again when it is known how the files fall into packs, and how large graphs are that hold their weights.

    Raises:
        RequestError: A kind of delivery gets more than the app's store takes.
    """
    check_total(bundle, sum(part.size for part in parts), limits)
    later = sum(part.size for part in parts if part.delivery == "fast-follow")
    if later > limits.later:
        raise RequestError(
            f"{bundle}: {human_bytes(later)} would have to come after the install, expected at most "
            f"{human_bytes(limits.later)}; export with a smaller --experts-dtype"
        )


def asset_packs(sizes: dict[str, int], limits: Limits) -> list[AppFolder]:
    """Put files into asset packs, in their order.

    The app can count on packs of the kind "install-time" from its first start on, and read their files in place, so all
    are of that kind while the app's store takes it; "fast-follow" ones come when the app is installed already.
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
    """Return the sizes of a bundle's files: first the manifest, last the shards, without which a graph can load."""
    shards = [shard.file for shard in manifest.experts.shards]
    names = [name for name in manifest.files if name not in shards]
    sizes = {name: manifest.files[name].size for name in (*names, *shards)}
    return {MANIFEST: (folder / MANIFEST).stat().st_size, **sizes}


def move_files(parts: list[AppFolder], content: Path, folder: Path) -> None:
    """Move the files of a bundle to where they belong in a package."""
    for part in parts:
        target = folder / part.folder
        target.mkdir(parents=True)
        for name in part.files:
            (content / name).rename(target / name)
    shutil.rmtree(content)


def is_package(folder: Path) -> bool:
    """Tell whether a folder holds a package, and nothing else."""
    path = folder / DATA
    try:
        info = decode_json(read_bytes(path, BundleError, ""), PackageInfo, path, BundleError)
    except BundleError:
        return False
    known = {folder / name for name in info.others}
    for part in info.parts:
        known |= {folder / part.build_file, *(folder / part.folder / name for name in part.files)}
    return {path for path in folder.rglob("*") if not path.is_dir() and not is_system_file(path)} <= known
