"""`molkv-export selftest`."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from molkv_export.commands.options import LOCATION, common_options, json_option, print_json, provider_options
from molkv_export.terminal import byte_progress, counter
from molkv_runtime import SelfTest, Target, describe_placements, selftest


@click.command("selftest")
@click.argument("bundle", type=LOCATION)
@provider_options()
@json_option
@common_options
def selftest_command(
    bundle: Path | str,
    profile: str | None,
    target: Target,
    as_json: bool,
    notes: Console,
) -> None:
    """Check BUNDLE on this device, without PyTorch.

    The command shows that this device computes the same as the source model. It needs no checkpoint. It compares every
    byte with the checksums in the manifest. Then it compares the results of the bundle with the golden vectors, which
    are results that PyTorch computed at export: prefill in chunks, step-by-step decode, greedy text in a batch. It
    exits with 1 if anything is different.

    \b
    Examples:
      molkv-export selftest stdlib-mini.bundle
      molkv-export selftest stdlib-mini.bundle --provider xnnpack
      molkv-export selftest stdlib-mini.bundle --json > selftest.json
    """
    with byte_progress(notes) as progress:
        result = selftest(
            bundle,
            profile=profile or "",
            target=target,
            advance=counter(progress, "checking files"),
        )
    if as_json:
        print_json(result)
    else:
        click.echo(f"{bundle}: {result.texts} golden texts, profile {result.profile}, provider {target.provider}")
        for line in _lines(result):
            click.echo(line)
    sys.exit(1 if result.failures else 0)


def _lines(result: SelfTest) -> list[str]:
    lines = []
    if result.phases:  # empty if the bundle was refused before anything ran
        limits = result.phases[0].limits
        lines.append(f"  {describe_placements(result.placements)}")
        lines.append(f"  limits: max abs {limits.max_abs:.1e}, rel. L2 {limits.relative_l2:.1e}")
    lines += [
        f"  {phase.phase}: {phase.positions} positions, max abs logit {phase.max_abs_logit:.1e}, "
        f"projection {phase.max_abs_projection:.1e}, rel. L2 {phase.relative_l2:.1e}, "
        f"{phase.right_tokens} of {phase.certain_tokens} tokens right (ties not counted)"
        for phase in result.phases
    ]
    if result.greedy_tokens:
        lines.append(f"  greedy text: {result.greedy_identical} of {result.greedy_tokens} tokens identical")
    elif result.phases:
        lines.append("  greedy text: not compared, because rounding can change even the first tokens")
    lines += [f"FAIL {failure}" for failure in result.failures]
    return lines if result.failures else [*lines, "PASS this device computes the same as the source model"]
