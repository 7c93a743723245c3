"""`molkv-export selftest`."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from molkv_export.commands.options import PATH, provider_options
from molkv_export.terminal import byte_progress, console, counter
from molkv_runtime import Target, describe_placements, selftest


@click.command("selftest")
@click.argument("bundle", type=PATH)
@provider_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
def selftest_command(
    bundle: Path,
    profile: str | None,
    provider: str,
    provider_options: tuple[tuple[str, str], ...],
    require_provider: bool,
    as_json: bool,
) -> None:
    """Prove on this device that BUNDLE computes what the source model computed. Needs no PyTorch and no checkpoint.

    Checks every byte against the manifest, then runs the golden vectors that PyTorch left in the bundle: prefill in
    chunks, step-by-step decode, greedy text in a batch. Exits with 1 if anything is different.

    \b
    Examples:
      molkv-export selftest stdlib-mini.bundle
      molkv-export selftest stdlib-mini.bundle --provider xnnpack
    """
    with byte_progress(console(stderr=True)) as progress:
        result = selftest(
            bundle,
            profile=profile or "",
            target=Target(provider, dict(provider_options), require_provider),
            advance=counter(progress, "checking files"),
        )
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(result), indent=1))
    else:
        click.echo(f"{bundle}: {result.texts} golden texts, profile {result.profile}, provider {provider}")
        if result.phases:  # else the bundle was refused before anything ran
            click.echo(f"  {describe_placements(result.placements)}")
            limits = result.phases[0].limits
            click.echo(f"  limits: max abs {limits.max_abs:.1e}, rel. L2 {limits.relative_l2:.1e}")
        for phase in result.phases:
            click.echo(
                f"  {phase.phase}: {phase.positions} positions, max abs logit {phase.max_abs_logit:.1e}, "
                f"projection {phase.max_abs_projection:.1e}, rel. L2 {phase.relative_l2:.1e}, "
                f"{phase.right_tokens} of {phase.certain_tokens} certain tokens right"
            )
        if result.greedy_tokens:
            click.echo(f"  greedy text: {result.greedy_identical} of {result.greedy_tokens} tokens identical")
        elif result.phases:
            click.echo("  greedy text: none, since rounding could decide the first tokens already")
        for failure in result.failures:
            click.echo(f"FAIL {failure}")
        if not result.failures:
            click.echo("PASS this device computes what the source model computed")
    sys.exit(1 if result.failures else 0)
