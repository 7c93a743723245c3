"""What the stores of apps take, in bytes."""

from __future__ import annotations

from typing import Literal, NamedTuple

Target = Literal["android", "ios"]


class Limits(NamedTuple):
    """How large the parts of a package may be. The stores count after compression, which experts hardly yield to."""

    file: int  # any file
    pack: int  # an asset pack, which is uploaded and downloaded as one
    upfront: int  # all that comes with the app
    later: int  # all that is fetched once the app is installed

    @property
    def shard(self) -> int:
        """Largest file of the store, where it is cut anew: as many of them as fill a pack."""
        return self.pack // -(-self.pack // self.file)


LIMITS: dict[Target, Limits] = {
    # Play Console help, "Optimize your app's size and stay within Google Play app size limits": 1.5 GB for an asset
    # pack, 4 GB for all modules and install-time packs (up to 200 MB of it for the base module), 4 GB for all other
    # packs. The limit for files is ours: even a 32-bit process finds room to map one, and a phone to copy one.
    "android": Limits(file=512 * 1024**2, pack=1_500_000_000, upfront=3_800_000_000, later=4_000_000_000),
    # App Store Connect help, "On-demand resources size limits": from iOS 18 on 4 GB for the app, 8 GB for an asset
    # pack, 70 GB for all packs (before: 2 GB, 512 MB and 20 GB).
    "ios": Limits(file=4_000_000_000, pack=4_000_000_000, upfront=4_000_000_000, later=70_000_000_000),
}
