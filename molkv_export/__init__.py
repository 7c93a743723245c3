"""The exporter: trained lookup-expert models in, bundles out.

The commands are thin over these functions:

molkv_export.export.export       molkv_export.parity.validate.validate
molkv_export.inspect.inspect     molkv_export.training.loop.train
"""
