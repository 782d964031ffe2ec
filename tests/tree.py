"""The README's file tree, made from the files; ``python -m tests.tree`` renews it there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def tree() -> str:
    """A line a module: its place, and the first line of its docstring."""
    lines = []
    for folder in sorted(path.parent for path in ROOT.glob("cahlib/**/__init__.py")):
        depth = len(folder.relative_to(ROOT).parts) - 1
        lines.append(_line(folder.name + "/", _about(folder / "__init__.py"), depth))
        for path in sorted(folder.glob("*.py")):
            if path.name != "__init__.py":
                lines.append(_line(path.name, _about(path), depth + 1))
    return "\n".join(lines)


def _line(name: str, about: str, depth: int) -> str:
    return f"{'  ' * depth + name:<21} {about}"


def _about(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n", 1)[0].rstrip(".")


def block(name: str, text: str) -> str:
    """The README's marked block of this name, as it should read."""
    return f"<!-- {name} -->\n```\n{text}\n```\n<!-- /{name} -->"


def renewed() -> str:
    """The README with its marked blocks made anew."""
    text = README.read_text(encoding="utf-8")
    return re.sub(
        r"<!-- tree -->.*<!-- /tree -->", lambda _: block("tree", tree()), text, flags=re.DOTALL
    )


if __name__ == "__main__":
    README.write_text(renewed(), encoding="utf-8")
