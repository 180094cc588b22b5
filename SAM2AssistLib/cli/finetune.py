"""``sam2assist finetune``: labelled CTs in, an adapter out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from SAM2AssistLib.cli.arguments import AsJson, Device, Model
from SAM2AssistLib.cli.console import SECONDS_BETWEEN_LINES, print_json, say, stderr, stdout, tell
from SAM2AssistLib.cli.segment import check_model, parse_window
from SAM2AssistLib.engine.catalogue import find_model
from SAM2AssistLib.errors import Cancelled, InputError

if TYPE_CHECKING:
    from SAM2AssistLib.training.adapter_run import Plan, Result
    from SAM2AssistLib.training.finetune import Progress as RunProgress
    from SAM2AssistLib.training.recipe import FineTuneRecipe

MOST_NOTES = 3
"""On images, before a run; what is wrong with one of a data set mostly is with all."""


def finetune(
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="DIR",
            help="images/, labels/ and labels.json; or Synapse/BTCV, FLARE22, AMOS, MSD, nnU-Net or TotalSegmentator.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="ADAPTER", help="Folder for the adapter; made if missing.")],
    model: Model = "mini",
    device: Device = "auto",
    steps: Annotated[
        int, typer.Option("--steps", help="Steps of a run without pruning, which makes 56 % of them.")
    ] = 2000,
    batch: Annotated[int, typer.Option("--batch", help="Slices of a step, over all processes.")] = 4,
    accumulate: Annotated[int, typer.Option("--accumulate", help="Parts of a step, one after the other.")] = 1,
    rank: Annotated[int, typer.Option("--rank", help="Of the low-rank updates.")] = 8,
    alpha: Annotated[float | None, typer.Option("--alpha", help="Of the updates; twice the rank if not given.")] = None,
    targets: Annotated[
        str, typer.Option("--targets", metavar="A,B", help="Where updates go: encoder, memory, decoder.")
    ] = "encoder,memory,decoder",
    whole: Annotated[
        str, typer.Option("--whole", metavar="A,B", help="Trained in full: encoder, neck, prompt, decoder, memory.")
    ] = "",
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Peak, of the updates.")] = 1e-3,
    classes: Annotated[str, typer.Option("--classes", metavar="A,B", help="Structures; all if not given.")] = "",
    window: Annotated[str, typer.Option("--window", metavar="W", help="A preset, or LEVEL/WIDTH in HU.")] = "abdomen",
    context: Annotated[
        str, typer.Option("--context", help="windows, or slices: a slice between its neighbours as channels (2.5D).")
    ] = "windows",
    split: Annotated[
        Path | None, typer.Option("--split", metavar="FILE", help="JSON with 'train', 'val', 'test'; splits.json.")
    ] = None,
    pruning: Annotated[str, typer.Option("--pruning", help="cbdp, random or none.")] = "cbdp",
    clip_share: Annotated[float, typer.Option("--clip-share", help="Share of the steps that train the memory.")] = 0.3,
    phantoms: Annotated[int, typer.Option("--phantoms", help="Procedural CT phantoms beside the data.")] = 0,
    synthetic: Annotated[int, typer.Option("--synthetic", help="Volumes of random shapes beside the data.")] = 0,
    precision: Annotated[str, typer.Option("--precision", help="no (float32) or bf16.")] = "no",
    seed: Annotated[int, typer.Option("--seed", help="Of everything random.")] = 1,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that prepare samples.")] = 0,
    checkpoint_every: Annotated[int, typer.Option("--checkpoint-every", min=1, help="Steps between checkpoints.")] = 50,
    untrained_base: Annotated[
        bool, typer.Option("--untrained-base", help="Try a setting without the weights; the adapter is of no use.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train an adapter on labelled CTs; the same command goes on with a run that was interrupted."""
    spec = find_model(model)
    if not untrained_base:
        check_model(model)
    hu_window = parse_window(window)
    for package in ("peft", "accelerate", "monai"):
        _check_installed(package)
    from SAM2AssistLib.engine.device import choose_device
    from SAM2AssistLib.training.adapter_run import finetune_adapter
    from SAM2AssistLib.training.cbdp import Pruning
    from SAM2AssistLib.training.lora import LoraRecipe
    from SAM2AssistLib.training.recipe import FineTuneRecipe

    lora = LoraRecipe(rank, 2.0 * rank if alpha is None else alpha, 0.0, _listed(targets), _listed(whole))
    recipe = FineTuneRecipe(
        steps=steps,
        batch=batch,
        accumulate=accumulate,
        learning_rate=learning_rate,
        clip_share=clip_share,
        window=hu_window,
        context=context,
        phantoms=phantoms,
        synthetic=synthetic,
        precision=precision,
        seed=seed,
        lora=lora,
        pruning=Pruning(pruning),
    )
    try:
        with _shown() as report:
            result = finetune_adapter(
                data,
                out,
                spec,
                recipe,
                choose_device(device),
                split_file=split,
                classes=_listed(classes),
                workers=workers,
                checkpoint_every=checkpoint_every,
                untrained_base=untrained_base,
                announce=lambda plan: _announce(plan, recipe),
                report=report,
            )
    except KeyboardInterrupt:
        from SAM2AssistLib.training.finetune import RUN_FOLDER
        from SAM2AssistLib.training.run_state import CHECKPOINT

        if (out / RUN_FOLDER / CHECKPOINT).is_file():
            raise Cancelled("Cancelled; the same command goes on from the last checkpoint.") from None
        raise Cancelled("Cancelled before anything was kept; the same command begins anew.") from None
    _tell(result, as_json)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _check_installed(package: str) -> None:
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise InputError(f"Fine-tuning needs the package {package}; install it with: pip install 'sam2assist[train]'.")


def _announce(plan: Plan, recipe: FineTuneRecipe) -> None:
    """Say what is about to happen, before it does."""
    tell(plan.notes[:MOST_NOTES])
    if len(plan.notes) > MOST_NOTES:
        say(f"Note: There are {len(plan.notes) - MOST_NOTES} more such notes on other images.")
    split = plan.split
    say(
        f"{plan.data.layout}: {len(split.train)} cases to train on, {len(split.val)} for validation, {len(split.test)} "
        f"held out ({split.source}); {plan.training_slices} slices, {len(plan.classes)} structures."
    )
    peak = f"{plan.peak_bytes / 2**30:.1f} GB at its peak (measured)" if plan.peak_bytes else "not told by this system"
    say(
        f"{plan.steps} steps of {recipe.batch} slices in {plan.epochs} epochs, {plan.trained_parameters:,} parameters; "
        f"memory: {plan.data_bytes / 2**30:.2f} GB of volumes, a step {peak}."
    )
    if plan.done:
        say(f"Going on from step {plan.done}.")


@contextmanager
def _shown() -> Iterator[Callable[[RunProgress], None]]:
    """Show progress with the time that is left: a bar on a terminal, else now and then a line."""
    console = stderr()
    if console.is_interactive:
        columns = (TextColumn("Training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=None)
            yield lambda p: bar.update(task, completed=p.step, total=p.steps, description=_line(p))
        return
    due = time.monotonic()

    def show(progress: RunProgress) -> None:
        nonlocal due
        if time.monotonic() >= due:
            say(f"Training: step {progress.step} of {progress.steps}, {_line(progress)}")
            due = time.monotonic() + SECONDS_BETWEEN_LINES

    yield show


def _line(progress: RunProgress) -> str:
    minutes, seconds = divmod(round(progress.eta_seconds), 60)
    dice = ", ".join(f"{name} {value:.2f}" for name, value in progress.dice.items())
    return f"{minutes}:{seconds:02} left, loss {progress.loss:.2f}, Dice {dice}"


def _tell(result: Result, as_json: bool) -> None:
    from SAM2AssistLib.training.adapter_run import UNTRAINED

    training = result.card["training"]
    if as_json:
        print_json({"adapter": str(result.folder), "metrics": result.metrics, "card": result.card})
        return
    console = stdout()
    if result.metrics:
        for name, values in result.metrics.items():
            shown = ", ".join(f"{part} {value:.3f}" for part, value in values.items())
            console.print(f"Mean 2D Dice on validation slices, {name}: {shown}.", soft_wrap=True)
    untrained = result.card["base_sha256"] == UNTRAINED
    use = "of no use, because its base is untrained" if untrained else f"use it with --adapter {result.folder}"
    console.print(
        f"{result.folder} written after {training['steps']} steps ({training['share_of_iterations']:.0%} of those "
        f"without pruning) in {training['seconds']:.0f} s; {use}.",
        soft_wrap=True,
    )
