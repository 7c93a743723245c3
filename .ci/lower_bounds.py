"""Print what the project depends on, at exactly the lower bounds of pyproject.toml: NAME==VERSION, one a line."""

import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
for dependency in project["dependencies"]:
    name, bound = dependency.split(">=")  # anything else has no lower bound to be run
    print(f"{name}=={bound}")
