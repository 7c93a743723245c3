"""The exporter: trained lookup-expert models in, bundles out.

The commands are thin over these functions:

molkv_export.export.export       molkv_export.parity.validate.validate
molkv_export.inspect.inspect     molkv_export.training.loop.train
"""

__version__ = "0.1.0"  # the only place: pyproject.toml reads it here, so that a checkout knows it, too
