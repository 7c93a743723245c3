"""Open changed graphs in a separate process, which may crash: `python -m tests.faults.open_mutants -h`."""

from __future__ import annotations

import argparse
import resource
import signal
from pathlib import Path

from molkv_bundle import MolkvError, read_manifest
from molkv_runtime import Generator
from tests.faults.graph_mutants import mutant
from tests.manifests import replace_file

PATIENCE_SECONDS = 60
_MEMORY = 2 * 2**30  # bytes of address space that a mutant may take


def behaviour(bundle: Path) -> str:
    """Open a bundle and generate, as an app would. Return the token ids or the error."""
    try:
        generator = Generator(bundle)
        prompts = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13], [5]]
        return f"ran {[token.id for token in generator.stream(prompts, max_new_tokens=4)]}"
    except MolkvError as error:
        return f"{type(error).__name__}: {error}"


def main() -> None:
    """Open mutants of a bundle's graphs, one after the other. A crash or a hang ends the process."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("bundle", type=Path, help="is changed")
    parser.add_argument("first", type=int, help="seed")
    parser.add_argument("count", type=int)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    [graph] = read_manifest(arguments.bundle).graphs.values()
    sound = {file.file: (arguments.bundle / file.file).read_bytes() for file in graph.files}
    print(f"sound: {behaviour(arguments.bundle)}", flush=True)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    for seed in range(arguments.first, arguments.first + arguments.count):
        name = list(sound)[seed % len(sound)]
        content, changes = mutant(sound[name], seed)
        replace_file(arguments.bundle, name, content)
        print(f"{seed} {name}: {'; '.join(changes)}", flush=True)
        signal.alarm(PATIENCE_SECONDS)
        print(f"    {behaviour(arguments.bundle)}", flush=True)
        signal.alarm(0)
        replace_file(arguments.bundle, name, sound[name])


if __name__ == "__main__":
    main()
