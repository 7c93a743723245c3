"""An open bundle: a folder on this machine, or the URL of a folder on the Hub or in object storage."""

from __future__ import annotations

import copy
import stat
from collections.abc import Sequence
from pathlib import Path

from molkv_bundle.config import ModelConfig
from molkv_bundle.errors import BundleError
from molkv_bundle.files import file_sha256
from molkv_bundle.graph_file import check_graph_file
from molkv_bundle.interface import graph_interface
from molkv_bundle.manifest import PROFILES, GraphInfo, Manifest, read_manifest
from molkv_bundle.remote import RemoteFolder, resolve_location
from molkv_bundle.remote_bundle import Advance, RemoteBundle

TOKENIZER = "tokenizer.json"


class Bundle:
    """A bundle with a valid manifest. All files in the manifest exist and have the sizes that the manifest lists."""

    def __init__(
        self,
        location: str | Path,
        manifest: Manifest | None = None,
        *,
        profiles: Sequence[str] = (),
        profile: str = "",
        advance: Advance = lambda _name, _count, _size: None,
    ) -> None:
        """Open a bundle for one of its profiles, and check the sizes of its files.

        A file may be a link to a regular file. The method `file` checks the hash of a file. Each record has its own
        checksum. Of a bundle on the Hub or in object storage, this downloads only the manifest.

        Args:
            location: The folder of the bundle, or its URL: hf://owner/name[@revision], s3://bucket/path,
                gs://bucket/path or file:///path.
            manifest: The manifest of a bundle that is still being written; default: the manifest in the folder.
            profiles: The acceptable profiles, best first; default: all, in the order of the manifest.
            profile: The required profile. If it is given, `profiles` has no effect.
            advance: Called after each piece of a download with the file's name, the piece's bytes and the file's size.

        Raises:
            BundleError: The folder is not a complete bundle, or the bundle has no graph for these profiles.
            MissingExtraError: The packages for this kind of URL are not installed.
        """
        self._remote: RemoteBundle | None = None
        place = resolve_location(location)
        if isinstance(place, Path):
            self.path = place
        else:
            self._remote = RemoteBundle(place, advance)
            self.path = self._remote.path
        self.manifest: Manifest = self._remote.manifest if self._remote else manifest or read_manifest(self.path)
        self.profile = self._choose(profiles, profile)
        if self._remote is None:
            for name, info in self.manifest.files.items():
                self._check_size(name, info.size)

    @property
    def remote(self) -> RemoteFolder | None:
        """The folder that holds the bundle, if it is not on this machine. `path` is then the folder of downloads."""
        return self._remote.folder if self._remote else None

    @property
    def where(self) -> str:
        """The path or the URL of the bundle, for messages."""
        return self._remote.folder.url if self._remote else str(self.path)

    def with_profile(self, profile: str) -> Bundle:
        """Return the same open bundle for another of its profiles."""
        other = copy.copy(self)
        other.profile = other._choose((), profile)
        return other

    def _check_size(self, name: str, size: int) -> None:
        path = self.path / name
        try:
            found = path.stat()  # follows links, since files in Hugging Face's cache are links
        except OSError as error:
            what = "is a broken link" if path.is_symlink() else "is missing"
            raise BundleError(f"{path}: {what}; the manifest lists it with {size} bytes") from error
        if not stat.S_ISREG(found.st_mode):
            raise BundleError(f"{path}: is not a regular file, expected a file of {size} bytes")
        if found.st_size != size:
            raise BundleError(
                f"{path}: has {found.st_size} bytes, the manifest says {size}; the file is truncated or was replaced"
            )

    def _choose(self, profiles: Sequence[str], profile: str) -> str:
        there = list(self.manifest.graphs)
        if profile and profile not in there:
            add = f". Add it with: molkv-export export CHECKPOINT {self.where} --add-profile {profile}"
            raise BundleError(
                f"{self.where}: has no graph for profile {profile!r}; available: {', '.join(there)}"
                f"{add if profile in PROFILES else ''}"
            )
        chosen = [profile] if profile else [name for name in profiles or there if name in there]
        if not chosen:
            raise BundleError(
                f"{self.where}: has graphs for profile {', '.join(there)}, expected {' or '.join(profiles)}. "
                f"Add a graph with: molkv-export export CHECKPOINT {self.where} --add-profile {profiles[0]}"
            )
        return chosen[0]

    @property
    def config(self) -> ModelConfig:
        """The model's configuration, with the context length and the expert window of the profile's graph."""
        return self.graph().restrict(self.manifest.model)

    def graph(self) -> GraphInfo:
        """Return the dense graph of the profile."""
        return self.manifest.graphs[self.profile]

    def file(self, name: str) -> Path:
        """Return the path of a file after checking its hash. A file of a remote bundle is downloaded if necessary.

        Raises:
            BundleError: The manifest does not list the file, or the file has changed since the export.
            OutputError: The file must be downloaded, but the cache cannot be written.
        """
        path = self.path / name
        if name not in self.manifest.files:
            raise BundleError(
                f"{self.where}/{name}: is not part of the bundle; available: {', '.join(sorted(self.manifest.files))}"
            )
        if self._remote:
            return self._remote.file(name)
        try:
            found = file_sha256(path)
        except OSError as error:
            raise BundleError(f"{path}: cannot be read ({error.strerror})") from error
        if found != (expected := self.manifest.files[name].sha256):
            raise BundleError(f"{path}: has sha256 {found[:12]}..., the manifest says {expected[:12]}...; export again")
        return path

    def graph_paths(self) -> dict[int, Path]:
        """Check the graph files of the profile, and return their paths by the number of positions of a call (0: any).

        Raises:
            BundleError: A file is damaged, is not a valid dense graph, or does not match the model's configuration.
        """
        info, paths = self.graph(), {}
        weights = self.file(info.data)
        for file in info.files:
            paths[file.length] = path = self.file(file.file)
            if (target := weights.resolve()).parent not in (path.parent.resolve(), path.resolve().parent):
                raise BundleError(
                    f"{weights}: is a link to {target}, expected a file in the folder of {path.name} or of its link "
                    "target. ONNX Runtime reads weights only from these folders; copy the weights into the bundle"
                )
            check_graph_file(path, weights.name)
            wanted = graph_interface(self.config, info.kv_dtype, file.length, info.window_dtype)
            for kind, listed, wants in zip(("inputs", "outputs"), (file.inputs, file.outputs), wanted, strict=True):
                if listed != wants:
                    raise BundleError(
                        f"{path}: its {kind} in the manifest differ from those that the model's configuration requires"
                    )
        return paths
