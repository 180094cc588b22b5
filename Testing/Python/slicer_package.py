"""Which files Slicer's build has to install: the lists in SAM2AssistLib.cmake, from the files that are there.

Run (``make slicer-files``) it writes the lists; `test_slicer_conventions` compares them.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIST_FILE = ROOT / "SAM2AssistLib" / "SAM2AssistLib.cmake"
RESOURCE_ENDINGS = {".json", ".safetensors", ".yaml"}


def package_files() -> tuple[list[str], list[str]]:
    """Return the Python files and the resources of SAM2AssistLib, relative to the repository's root."""
    files = [path for path in (ROOT / "SAM2AssistLib").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    names = {path.relative_to(ROOT).as_posix(): path.suffix for path in files}
    scripts = sorted(name for name, ending in names.items() if ending == ".py")
    return scripts, sorted(name for name, ending in names.items() if ending in RESOURCE_ENDINGS)


def list_text() -> str:
    """Return what the list file has to say."""
    scripts, resources = package_files()
    blocks = (("SAM2AssistLib_PYTHON_SCRIPTS", scripts), ("SAM2AssistLib_PYTHON_RESOURCES", resources))
    lines = ["# Written by `make slicer-files`; relative to the repository's root."]
    for name, files in blocks:
        lines += [f"set({name}", *(f"  {file}" for file in files), "  )"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    LIST_FILE.write_text(list_text(), encoding="utf-8")
    print(f"{LIST_FILE.relative_to(ROOT)} is up to date.")
