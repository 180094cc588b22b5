"""``sam2assist support``: finished cases to segment new volumes like them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from SAM2AssistLib.cli.arguments import AsJson, Image
from SAM2AssistLib.cli.console import print_json, stdout, tell, working

support_app = typer.Typer(help="Keep finished cases that 'sam2assist auto --case NAME' goes by.", no_args_is_help=True)


@support_app.command("add")
def add_support(
    image: Image,
    mask: Annotated[Path, typer.Argument(metavar="MASK", help="A segmentation, or a label map with labels.json.")],
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="That of the image if not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Add a finished case to the library."""
    from SAM2AssistLib.prompting.support import read_support
    from SAM2AssistLib.prompting.support_library import SupportLibrary

    with working("Adding the case"):
        case = read_support(image, mask)
        entry = SupportLibrary().add(case, name)
    tell(case.notes)
    if as_json:
        print_json({"name": entry.name, "classes": entry.classes, "added": entry.added, "warnings": case.notes})
        return
    stdout().print(f"{entry.name} added with {len(entry.classes)} classes: {', '.join(entry.classes)}", soft_wrap=True)


@support_app.command("list")
def list_supports(as_json: AsJson = False) -> None:
    """List the cases of the library."""
    from SAM2AssistLib.prompting.support_library import SupportLibrary

    library = SupportLibrary()
    entries, damaged = library.entries(), library.damaged()
    tell(damaged)
    if as_json:
        cases = [{"name": e.name, "classes": e.classes, "added": e.added} for e in entries]
        print_json({"folder": str(library.folder), "cases": cases, "warnings": damaged})
        return
    table = Table("Name", "Classes", "Added")
    for entry in entries:
        table.add_row(entry.name, ", ".join(entry.classes), entry.added)
    stdout().print(table)
    stdout().print(f"Cases are kept in {library.folder}", soft_wrap=True)


@support_app.command("remove")
def remove_support(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name from 'sam2assist support list'.")],
    as_json: AsJson = False,
) -> None:
    """Delete a case from the library."""
    from SAM2AssistLib.prompting.support_library import SupportLibrary

    SupportLibrary().remove(name)
    if as_json:
        print_json({"removed": name})
        return
    stdout().print(f"{name} removed", soft_wrap=True)
