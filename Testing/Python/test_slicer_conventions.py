"""What Slicer's build, its loader and its reviewers expect of this repository, checked without Slicer."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import slicer_package
from PIL import Image

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = None

ROOT = slicer_package.ROOT
MODULE_FILE = ROOT / "SAM2Assist" / "SAM2Assist.py"
LIBRARY_FILES = sorted((ROOT / "SAM2AssistLib").rglob("*.py"))
# slicer.packaging and Slicer itself bring these; a pip that replaces them breaks the application.
BROUGHT_BY_SLICER = {"simpleitk", "numpy", "scipy", "pydicom", "requests", "vtk", "torch", "torchvision", "sam2"}
MOST_LINES = 500


@cache
def repository_files() -> tuple[Path, ...]:
    """Return the files git tracks or would track; all but environments and caches where there is no git."""
    git = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(git, capture_output=True, text=True, check=True).stdout
        names = [name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        paths = (path.relative_to(ROOT) for path in ROOT.rglob("*"))
        names = [
            str(path) for path in paths if not any(re.match(r"\.(?!ci$)|__pycache__", part) for part in path.parts)
        ]
    return tuple(sorted(ROOT / name for name in names if (ROOT / name).is_file()))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(nodes: list[ast.stmt] | ast.Module) -> set[str]:
    """Return the top-level packages that statements import; of a whole module, at any depth."""
    statements = ast.walk(nodes) if isinstance(nodes, ast.Module) else iter(nodes)
    names: set[str] = set()
    for node in statements:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def module_class(ending: str) -> ast.ClassDef:
    classes = {node.name: node for node in tree_of(MODULE_FILE).body if isinstance(node, ast.ClassDef)}
    return classes[f"SAM2Assist{ending}"]


def is_translated(node: ast.expr) -> bool:
    """Return whether a text reaches the user through ``_()`` or ``translate()``."""
    if isinstance(node, ast.List):
        return all(is_translated(element) for element in node.elts)
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"_", "translate"}


@pytest.mark.parametrize(
    ("ending", "base"),
    [
        ("", "ScriptedLoadableModule"),
        ("Widget", "ScriptedLoadableModuleWidget"),
        ("Logic", "ScriptedLoadableModuleLogic"),
        ("Test", "ScriptedLoadableModuleTest"),
    ],
)
def test_the_module_file_has_the_classes_the_loader_asks_for(ending: str, base: str) -> None:
    assert base in [name.id for name in module_class(ending).bases if isinstance(name, ast.Name)]


def test_the_module_file_imports_only_slicer_qt_and_the_standard_library_when_it_is_loaded() -> None:
    assert imported(tree_of(MODULE_FILE).body) <= {"slicer", "vtk", "qt", "ctk"} | set(sys.stdlib_module_names)


def test_loading_the_module_file_runs_nothing_but_definitions() -> None:
    allowed = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef)
    for node in tree_of(MODULE_FILE).body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert isinstance(node, allowed) or is_docstring, f"line {node.lineno}"


def test_method_names_in_the_module_file_are_in_camel_case() -> None:
    for node in ast.walk(tree_of(MODULE_FILE)):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("__"):
            assert re.fullmatch(r"_?(test_)?[a-z][a-zA-Z0-9]*", node.name), node.name


def test_what_the_user_reads_of_the_module_is_translated() -> None:
    texts = {"title", "categories", "helpText", "acknowledgementText"}
    assignments = [node for node in ast.walk(module_class("")) if isinstance(node, ast.Assign)]
    found = {node.targets[0].attr: node.value for node in assignments if isinstance(node.targets[0], ast.Attribute)}
    assert texts <= found.keys()
    assert all(is_translated(found[name]) for name in texts)


def test_labels_and_raised_sentences_of_the_module_are_translated() -> None:
    for node in ast.walk(tree_of(MODULE_FILE)):
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Attribute, ast.Name)):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if name in {"QLabel", "QPushButton", "ValueError"}:
                text = node.args[0]
                if isinstance(text, ast.Call) and isinstance(text.func, ast.Attribute) and text.func.attr == "format":
                    text = text.func.value
                assert is_translated(text), f"line {node.lineno}"


def test_what_the_panel_says_is_translated() -> None:
    for path in (ROOT / "SAM2AssistLib" / "mrml").glob("*.py"):
        for node in ast.walk(tree_of(path)):
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if is_call and node.func.attr in {"showStatus", "showError"}:
                assert not isinstance(node.args[0], (ast.Constant, ast.JoinedStr)), f"{path.name} {node.lineno}"


def untranslated(function: ast.AST) -> list[int]:
    """Return the lines of a function that raise an error whose words have not been through ``_()``."""
    said = {
        target.id: node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    def is_plain(node: ast.AST) -> bool:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_":
            return False
        if isinstance(node, ast.Name) and node.id in said:
            return is_plain(said.pop(node.id))
        words = isinstance(node, ast.Constant) and isinstance(node.value, str) and re.search(r"[A-Za-z]", node.value)
        return bool(words) or isinstance(node, ast.JoinedStr) or any(map(is_plain, ast.iter_child_nodes(node)))

    raised = [node for node in ast.walk(function) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    return [node.lineno for node in raised if any(is_plain(argument) for argument in node.exc.args)]


def test_the_sentences_of_errors_that_the_module_raises_are_translated() -> None:
    for path in (MODULE_FILE, *(ROOT / "SAM2AssistLib" / "mrml").glob("*.py")):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef):
                assert untranslated(node) == [], path.name


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('raise InputError("No volume.")', True),
        ('raise InputError(f"{name} has no volume.")', True),
        ('said = "{name} has no volume."\n    raise InputError(said.format(name=name))', True),
        ('raise InputError("{name} is empty.".format(name=name))', True),
        ('raise InputError(_("No volume."))', False),
        ('said = _("{name} has no volume.")\n    raise InputError(said.format(name=name)) from error', False),
    ],
)
def test_the_lint_finds_sentences_that_are_not_translated(source: str, found: bool) -> None:
    assert bool(untranslated(ast.parse(f"def f(name, error):\n    {source}"))) is found


def test_the_self_test_runs_each_of_its_tests() -> None:
    methods = {node.name: node for node in module_class("Test").body if isinstance(node, ast.FunctionDef)}
    calls = {node.attr for node in ast.walk(methods["runTest"]) if isinstance(node, ast.Attribute)}
    assert {name for name in methods if name.startswith("test_")} <= calls


def test_the_library_knows_nothing_of_qt() -> None:
    for path in LIBRARY_FILES:
        assert not imported(tree_of(path)) & {"qt", "ctk", "PythonQt", "PySide6"}, path


def test_only_the_mrml_room_of_the_library_knows_slicer() -> None:
    for path in LIBRARY_FILES:
        if "mrml" not in path.relative_to(ROOT).parts:
            assert not imported(tree_of(path)) & {"slicer", "vtk", "vtkmodules"}, path


def test_nothing_is_installed_by_importing_a_file() -> None:
    for path in (MODULE_FILE, *LIBRARY_FILES):
        for node in tree_of(path).body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                assert not re.search(r"\bpip(_\w+)?\(|\bpip install\b.*\)$", ast.unparse(node)), path


def test_the_build_lists_every_file_of_the_library() -> None:
    written = slicer_package.LIST_FILE.read_text(encoding="utf-8")
    assert written == slicer_package.list_text(), "SAM2AssistLib.cmake is out of date; run 'make slicer-files'."


def test_the_build_lists_every_file_of_the_module() -> None:
    text = (ROOT / "SAM2Assist" / "CMakeLists.txt").read_text(encoding="utf-8").replace("${MODULE_NAME}", "SAM2Assist")
    folder = ROOT / "SAM2Assist"
    for path in repository_files():
        if folder in path.parents and path.name != "CMakeLists.txt":
            assert re.search(rf"^\s+{re.escape(path.relative_to(folder).as_posix())}$", text, re.MULTILINE), path
    for name in re.findall(r"^\s+(\S+\.(?:py|png|txt|ui))$", text, re.MULTILINE):
        assert (folder / name).is_file(), name


def test_the_extension_says_what_the_index_asks_for() -> None:
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    assert "project(SAM2Assist)" in text
    for key in ("HOMEPAGE", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS", "DEPENDS"):
        assert re.search(rf'set\s*\(EXTENSION_{key}\s*"[^"]+"\)', text), key


def test_pictures_that_pages_and_the_index_show_are_there() -> None:
    for page in (ROOT / "Resources" / "Docs").glob("*.md"):
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"
    shown = re.search(r'EXTENSION_SCREENSHOTURLS "([^"]+)"', (ROOT / "CMakeLists.txt").read_text(encoding="utf-8"))
    assert shown is not None
    for url in shown.group(1).split():
        assert (ROOT / "Resources" / "Screenshots" / url.rpartition("/")[2]).is_file(), url


def test_the_licence_lies_at_the_root() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text


def test_the_icons_of_module_and_extension_are_one_and_have_128_pixels() -> None:
    paths = (ROOT / "Resources/Icons/SAM2Assist.png", ROOT / "SAM2Assist/Resources/Icons/SAM2Assist.png")
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with Image.open(paths[0]) as icon:
        assert icon.size == (128, 128)


def test_slicer_is_never_asked_to_replace_what_it_brings() -> None:
    names = {re.split(r"[<>=!~\[; ]", line)[0].lower() for line in slicer_requirements()}
    assert not names & BROUGHT_BY_SLICER
    assert all(re.fullmatch(r"[\w.-]+>=[\d.]+", line) for line in slicer_requirements()), (
        "minimum versions, no exact pins"
    )


def test_the_requirements_of_slicer_are_the_extra_of_the_package() -> None:
    if tomllib is None:
        pytest.skip("reading pyproject.toml needs Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert sorted(slicer_requirements()) == sorted(project["optional-dependencies"]["slicer"])
    wanted = {re.split(r"[<>=]", entry)[0].lower(): entry for entry in project["dependencies"]}
    for line in slicer_requirements():
        assert wanted.get(re.split(r"[<>=]", line)[0].lower()) == line, "the extra repeats the package's own minimum"


def slicer_requirements() -> list[str]:
    text = (ROOT / "SAM2Assist" / "Resources" / "requirements.txt").read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_no_python_file_is_longer_than_a_reader_can_hold() -> None:
    lengths = {
        path: path.read_text(encoding="utf-8").count("\n") for path in repository_files() if path.suffix == ".py"
    }
    assert {path.name: lines for path, lines in lengths.items() if lines > MOST_LINES} == {}


def test_nothing_names_a_folder_of_one_machine() -> None:
    own_folder = re.compile(rb"(?<![\w.$}>~/-])/(?:work|root|home|Users)/\w")
    for path in repository_files():
        content = path.read_bytes()
        if b"\0" not in content[:8192]:
            assert not own_folder.search(content), path
