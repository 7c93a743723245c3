"""A family of models that only tests know: what another family has to bring, and where it is listed."""
