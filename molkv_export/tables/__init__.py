"""Writing the expert store in pieces; experts in training form are converted to rows (re-parameterization)."""
