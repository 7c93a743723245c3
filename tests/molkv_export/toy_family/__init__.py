"""A family of models for tests. It shows which files a new family needs and where it is registered."""
