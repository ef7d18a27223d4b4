"""the two packages -> how many files, folders and imports, and how deep they go.

    python tools/structure.py [ROOT]

A *room* is what stands directly in a package: a folder, or a file that lies flat. To know how a
package works, a visitor has to know its rooms, and which of them import which.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp

PACKAGES = ("leuda_deploy", "leuda_train")
# how one enters a package: not counted among the entries of its folder
ENTRANCES = ("__init__", "__main__", "cli")

Arrows = dict[str, set[str]]  # importer -> imported


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A package in figures.

    Attributes:
        rooms: What stands directly in the package, entrances aside.
        room_arrows: Pairs of rooms of which one imports the other.
        room_floors: Rooms on the longest chain of imports, entrances included.
        files: Python files, `__init__` aside.
        file_arrows: Pairs of files of which one imports the other.
        file_floors: Files on the longest chain of imports.
        largest_folder: Path and number of entries.
        longest_file: Path and number of lines.
    """

    rooms: int
    room_arrows: int
    room_floors: int
    files: int
    file_arrows: int
    file_floors: int
    largest_folder: tuple[str, int]
    longest_file: tuple[str, int]


def measure(root: Path, package: str) -> Structure:
    """Count the package that lies in the folder root.

    Raises:
        graphlib.CycleError: If files, or rooms, import each other in a circle.
    """
    files = file_arrows(package)
    rooms = room_arrows(package, files)
    folders = entries_by_folder(root / package)
    lines = lines_by_file(root / package)
    return Structure(
        rooms=len({file.split(".")[1] for file in files} - {*ENTRANCES}),
        room_arrows=sum(map(len, rooms.values())),
        room_floors=floors(rooms),
        files=len(files),
        file_arrows=sum(map(len, files.values())),
        file_floors=floors(files),
        largest_folder=_largest(folders, root),
        longest_file=_largest(lines, root),
    )


def file_arrows(package: str) -> Arrows:
    """Which file imports which, `__init__` aside: file -> the files it imports."""
    graph = grimp.build_graph(package, cache_dir=None)
    modules = {name for name in graph.modules if not graph.find_children(name)} - {package}
    return {name: set(graph.find_modules_directly_imported_by(name)) & modules for name in modules}


def room_arrows(package: str, files: Arrows) -> Arrows:
    """The same, room by room."""
    rooms: Arrows = {}
    for importer, imported in files.items():
        room = importer.split(".")[1]
        rooms.setdefault(room, set()).update({name.split(".")[1] for name in imported} - {room})
    return rooms


def floors(arrows: Arrows) -> int:
    """How many stand on the longest chain. Raises graphlib.CycleError if there is a circle."""
    height: dict[str, int] = {}
    for name in TopologicalSorter(arrows).static_order():
        height[name] = 1 + max((height[below] for below in arrows.get(name, ())), default=0)
    return max(height.values(), default=0)


def entries_by_folder(folder: Path) -> dict[Path, int]:
    """How many Python files and folders with Python files lie in each folder, entrances aside."""
    holds_python = {parent for file in folder.rglob("*.py") for parent in file.parents}
    inside = {folder, *(path for path in folder.rglob("*") if path in holds_python)}
    return {
        path: sum(
            entry.stem not in ENTRANCES and (entry in holds_python or entry.suffix == ".py")
            for entry in path.iterdir()
        )
        for path in inside
    }


def lines_by_file(folder: Path) -> dict[Path, int]:
    """How many lines each Python file has."""
    return {path: len(path.read_text().splitlines()) for path in folder.rglob("*.py")}


def reason_for_length(file: Path) -> str | None:
    """The sentence of a file's head that begins with "Long because", if there is one."""
    head = ast.get_docstring(ast.parse(file.read_text())) or ""
    start = head.find("Long because")
    return head[start:].split("\n\n")[0] if start >= 0 else None


def _largest(counts: dict[Path, int], root: Path) -> tuple[str, int]:
    path = max(counts, key=lambda one: (counts[one], str(one)))
    return str(path.relative_to(root)), counts[path]


def main() -> None:
    """Print the table."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve()
    sys.path.insert(0, str(root))
    try:
        found = [measure(root, package) for package in PACKAGES]
    except CycleError as error:
        sys.exit(f"a circle of imports: {' -> '.join(error.args[1])}")
    print(f"{'':<18}" + "".join(f"{package:>42}" for package in PACKAGES))
    for field in Structure.__dataclass_fields__:
        values = [getattr(structure, field) for structure in found]
        words = [f"{v[1]} in {v[0]}" if isinstance(v, tuple) else str(v) for v in values]
        print(f"{field.replace('_', ' '):<18}" + "".join(f"{word:>42}" for word in words))


if __name__ == "__main__":
    main()
