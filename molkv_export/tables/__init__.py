"""Re-parameterization: from experts as networks to the expert store, streaming."""
