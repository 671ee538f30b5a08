"""Imports go one way: oicsr <- baselines <- benchmarks; and the library needs little."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {"oicsr": {"oicsr"}, "baselines": {"oicsr", "baselines"}, "benchmarks": {"oicsr", "baselines", "benchmarks"}}
FIRST_PARTY = {*ALLOWED, "tests"}


def imported(source: str, package: str) -> set[str]:
    """Return the first-party packages that a source imports, at any depth of nesting."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(package if node.level else str(node.module).partition(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            target = node.args[0] if node.args else None
            found.add(str(target.value).partition(".")[0] if isinstance(target, ast.Constant) else "computed name")
    return found & {*FIRST_PARTY, "computed name"}


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    arrows = {str(path.relative_to(ROOT)): imported(path.read_text("utf-8"), package) for path in files}
    wrong = {path: names - ALLOWED[package] for path, names in arrows.items() if names - ALLOWED[package]}
    # a module that is named only when it runs may be one of the package's own, never of the library
    wrong = {path: names for path, names in wrong.items() if names != {"computed name"} or package == "oicsr"}
    assert not wrong


def test_walk_finds_nested_and_dynamic_imports() -> None:
    source = "def f():\n    from benchmarks.models import MODELS\n    import importlib\n"
    source += "    importlib.import_module('baselines.method')\n"
    assert imported(source, "oicsr") == {"benchmarks", "baselines"}


# The floors of `benchmarks/`, from the ground up. A package may import those of lower floors and its own, no others:
# what a person types; how results are shown and how runs are run; what they say and what one training is; what a run
# is made of; the machine. Loose modules (`config`, `suggest`) are on the ground.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("suggest", "config", "escape"),
    ("machine",),
    ("datasets", "models", "methods", "records", "experiments"),
    ("coverage", "analysis", "training"),
    ("perf", "running", "reporting"),
    ("faults",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
FLOOR = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}


def packages_imported(path: Path) -> set[str]:
    """Return the packages and loose modules of `benchmarks` that a file imports, at any depth of nesting."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "benchmarks":
            found |= {f"benchmarks.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute, so that this test sees them"
            found.add(str(node.module))
    return {name.split(".")[1] for name in found if name.startswith("benchmarks.")}


def benchmark_files() -> list[Path]:
    files = sorted((ROOT / "benchmarks").rglob("*.py"))
    assert len(files) > 100
    return files


def package_of(path: Path) -> str:
    return path.relative_to(ROOT / "benchmarks").parts[0].removesuffix(".py")


def test_packages_of_the_suite_import_downwards_only() -> None:
    wrong = []
    for path in benchmark_files():
        own = package_of(path)
        if own == "__init__":
            assert not packages_imported(path)
            continue
        upwards = {name for name in packages_imported(path) if name != own and FLOOR[name] >= FLOOR[own]}
        wrong += [f"{path.relative_to(ROOT)} -> {name}" for name in upwards]
    assert not wrong


def modules_imported(path: Path, known: set[str], *, annotations: bool) -> set[str]:
    found = set()
    nodes = ast.parse(path.read_text("utf-8")).body
    if annotations:  # `if TYPE_CHECKING:`
        nodes += [inner for block in nodes if isinstance(block, ast.If) for inner in block.body]
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            within = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= within if within <= known else within | {str(node.module)}
    return found & known


def modules_of(package: str) -> dict[str, Path]:
    """Return the files of a package by the names of their modules."""
    files = sorted((ROOT / package).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def circles(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return what is left of some arrows where that is taken away, again and again, which has none to what is left."""
    leaves = {name for name, needed in arrows.items() if not needed & arrows.keys()}
    return circles({name: needed for name, needed in arrows.items() if name not in leaves}) if leaves else arrows


@pytest.mark.parametrize("annotations", [False, True], ids=["imports", "imports for annotations too"])
def test_no_two_modules_import_each_other_in_a_circle(annotations: bool) -> None:
    files = {name: path for package in ALLOWED for name, path in modules_of(package).items()}
    known = set(files)
    assert not circles(
        {name: modules_imported(path, known, annotations=annotations) - {name} for name, path in files.items()}
    )


def test_no_two_folders_of_the_library_import_each_other_in_a_circle() -> None:
    files, arrows = modules_of("oicsr"), dict[str, set[str]]()
    del files["oicsr"]
    for name, path in files.items():
        own = name.split(".")[1]
        others = {other.split(".")[1] for other in modules_imported(path, set(files), annotations=True)}
        arrows.setdefault(own, set()).update(others - {own})
    assert len(arrows["pruning"]) > 5
    assert not circles(arrows)


def test_every_folder_of_the_library_says_what_it_holds() -> None:
    folders = {path.parent for path in (ROOT / "oicsr").rglob("__init__.py")} - {ROOT / "oicsr"}
    assert_that_they_say_what_they_hold(folders)
    told = re.search(r"\n\| in `oicsr/` .*?\n\n", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.DOTALL)
    assert told
    assert {folder.name for folder in folders} <= set(re.findall(r"^\| `(\w+)` \|", told[0], re.MULTILINE))


def test_modules_that_are_named_in_texts_exist() -> None:
    """Processes import some modules by name: a wrong name there only makes them slow, or fails late."""
    named = {
        (path.name, name)
        for path in benchmark_files()
        for name in re.findall(r"[\"'](benchmarks(?:\.\w+)+)[\"']", path.read_text("utf-8"))
    }
    assert named
    for file, name in named:
        folder = ROOT.joinpath(*name.split("."))
        assert folder.with_suffix(".py").is_file() or (folder / "__init__.py").is_file(), f"{file} names {name}"


def test_every_package_is_on_a_floor_and_says_what_it_holds() -> None:
    packages = {path.parent for path in benchmark_files() if path.parent.name != "benchmarks"}
    names = {path.relative_to(ROOT / "benchmarks").parts[0] for path in packages}
    assert names <= FLOOR.keys()
    assert_that_they_say_what_they_hold(packages)


def assert_that_they_say_what_they_hold(packages: set[Path]) -> None:
    for package in packages:
        assert ast.get_docstring(ast.parse((package / "__init__.py").read_text("utf-8"))), f"{package} has no docstring"


def arrows_of_the_code() -> dict[str, set[str]]:
    """Return what each package imports, without the modules that everything may use."""
    found: dict[str, set[str]] = {"oicsr": set(), "baselines": {"oicsr"}, "cli": {"commands"}}  # by the command's name
    for path in benchmark_files():
        own, tree = package_of(path), ast.parse(path.read_text("utf-8"))
        outside = {str(n.module).partition(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        found.setdefault(own, set()).update(packages_imported(path) | (outside & {"oicsr", "baselines"}))
    hidden = {"__init__", "__main__", "suggest", "escape"}
    return {own: others - {own} - hidden for own, others in found.items() if own not in hidden}


def everything_below(package: str, arrows: dict[str, set[str]]) -> set[str]:
    return set().union(*({other} | everything_below(other, arrows) for other in arrows[package]))


def test_the_picture_in_contributing_shows_the_arrows_of_the_code() -> None:
    arrows = arrows_of_the_code()
    below = {package: everything_below(package, arrows) for package in arrows}
    needed = {
        (own, other)
        for own, others in arrows.items()
        for other in others
        if not any(other in below[third] for third in others - {other})
    }
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    drawn = re.findall(r"^  (\w+) -[-.]+> (\w+)$", text, re.MULTILINE)
    assert set(drawn) == needed


HEAVY = "torch._dynamo sympy torchvision timm sklearn wandb ray torch_pruning"
MORE = f"{HEAVY} matplotlib pandas scipy"


@pytest.mark.parametrize(
    ("modules", "heavy"),  # modules that may load the same share a process
    [
        ("benchmarks.cli", f"{MORE} torch"),
        ("oicsr benchmarks.commands.status benchmarks.commands.merge benchmarks.commands.list", MORE),
        ("benchmarks.commands.report benchmarks.commands.run", f"{HEAVY} scipy.stats"),
    ],
)
def test_commands_start_without_what_takes_seconds_to_import(modules: str, heavy: str) -> None:
    code = f"import sys, {', '.join(modules.split())}; print(*sys.modules)"
    # what is compiled or kept in files beside byte code, as in everyday use, is made by the first of two runs
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(2 if "torch" in heavy.split() else 1):
        run = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
    loaded = set(run.stdout.split())
    assert set(modules.split()) <= loaded and not loaded & set(heavy.split())


def test_library_imports_torch_and_safetensors_only() -> None:
    code = "import sys, torch; before = set(sys.modules); import oicsr; print(*set(sys.modules) - before)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    packages = {name.partition(".")[0] for name in run.stdout.split()}
    assert "oicsr" in packages
    suite = {*"torchvision timm scipy sklearn pandas matplotlib wandb torch_pruning ray".split(), *ALLOWED} - {"oicsr"}
    assert not packages & suite
