"""Print the dependencies of pyproject.toml at their lower bounds: NAME==VERSION, one per line."""

import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
for dependency in project["dependencies"]:
    name, bound = dependency.split(">=")  # fails for a dependency without a lower bound
    print(f"{name}=={bound}")
