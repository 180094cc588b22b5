"""``sam2assist bench``: how fast the engine is here, beside SAM2's own predictor with the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from SAM2AssistLib.cli.arguments import AsJson, Device, Model
from SAM2AssistLib.cli.console import print_json, stdout, working
from SAM2AssistLib.engine import store
from SAM2AssistLib.engine.catalogue import find_model
from SAM2AssistLib.errors import InputError, ModelError

if TYPE_CHECKING:
    from SAM2AssistLib.benchmark.report import Report


def bench(
    model: Model = "mini",
    device: Device = "auto",
    size: Annotated[
        int | None, typer.Option("--size", metavar="PIXELS", help="Side of the network's input; else the model's own.")
    ] = None,
    slices: Annotated[
        int, typer.Option("--slices", min=8, help="Length of the volume that is propagated through.")
    ] = 200,
    objects: Annotated[
        str, typer.Option("--objects", metavar="N,N,...", help="How many objects at once, one run for each.")
    ] = "1,4,13",
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Random weights, for a model that has not been fetched.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out memory and start-up.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure encoding, clicks, propagation, memory and start-up; ours and SAM2's own predictor by turns."""
    counts = parse_counts(objects)
    spec = find_model(model)
    if not untrained and not store.is_present(spec):
        raise ModelError(store.missing_message(spec).rstrip(".") + ", or measure with --untrained.")
    with working("Loading the engine"):
        from SAM2AssistLib.benchmark.report import measure
        from SAM2AssistLib.benchmark.subject import engine_to_measure

        engine = engine_to_measure(model, device, size, untrained=untrained)
    with working("Measuring; a few minutes"):
        report = measure(engine, slices, counts, untrained=untrained, processes=not quick)
    if as_json:
        print_json(asdict(report))
        return
    _show(report)


def parse_counts(text: str) -> list[int]:
    """Read numbers of objects, such as "1,4,13".

    Raises
    ------
    InputError
        If it is not a list of numbers from 1 to 32.
    """
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1 or max(counts) > 32:
        raise InputError(f"--objects {text!r} is not a list of numbers from 1 to 32; write it as 1,4,13.")
    return counts


def _show(report: Report) -> None:
    console = stdout()
    machine = report.machine
    console.print(
        f"{machine.accelerator or machine.processor}, {machine.threads} threads, torch {machine.torch}; measured peak "
        f"{machine.float32_gflops:.0f} GFLOP/s in float32, {machine.bfloat16_gflops:.0f} in bfloat16, "
        f"{machine.bandwidth_gb_per_s:.0f} GB/s",
        soft_wrap=True,
    )
    table = Table()
    for heading in ("What", "Ours", "Upstream", "Ratio", "Note"):
        table.add_column(heading, justify="left" if heading in ("What", "Note") else "right")
    for row in _rows(report):
        table.add_row(*row)
    console.print(table)


def _rows(report: Report) -> Sequence[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for e in report.encode:
        rows.append((f"Encode {e.size}²", f"{e.ours_per_s:.1f}/s", f"{e.upstream_per_s:.1f}/s", f"{e.ratio:.2f}", ""))
    click = report.click_ms
    note = f"p95 {click.p95:.1f} ms"
    rows.append(
        ("Click", f"{click.p50:.1f} ms", f"{click.upstream_p50:.1f} ms", f"{click.upstream_p50 / click.p50:.2f}", note)
    )
    for p in report.propagate:
        what, note = f"{p.slices} slices, {p.objects} objects", f"mean IoU {p.mean_iou:.4f} where found ({p.found:.0%})"
        rows.append((what, f"{p.ours_s:.1f} s", f"{p.upstream_s:.1f} s", f"{p.ratio:.2f}", note))
    for name, share in report.roofline.items():
        rows.append((f"Roofline: {name}", f"{share['gflops']:.0f} GFLOP/s", "", "", f"{share['of_peak']:.0%} of peak"))
    peaks: dict[str, Any] = report.peak_mib
    for name, peak in peaks.items():
        ours, upstream = (f"{peak[who]:.0f} MiB" if who in peak else "" for who in ("ours", "upstream"))
        rows.append((f"Memory: {name}", ours, upstream, "", ""))
    for name, seconds in report.startup_s.items():
        rows.append((f"Start: {name}", f"{seconds:.2f} s", "", "", ""))
    return rows
