"""Package a bundle for an app, within the size limits of the app store, with a README for app developers.

`package.py` has the function. It is not imported here, because the command line imports this package even if jinja2,
which `package.py` needs, is not installed.
"""

from molkv_export.packaging.layout import (
    LIMITS,
    AppFolder,
    GraphFormat,
    Limits,
    PackagedGraph,
    PackageInfo,
    Platform,
)

__all__ = ["LIMITS", "AppFolder", "GraphFormat", "Limits", "PackageInfo", "PackagedGraph", "Platform"]
