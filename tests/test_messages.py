"""Every sentence that people can get, in one file to be read from top to bottom.

`tests/data/messages.txt` is made of the source: what is raised and what is printed or logged, by
file. ``make docs`` renews it.
"""

import ast
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import cahlib

PACKAGE = Path(cahlib.__file__).parent
MESSAGES = Path(__file__).parent / "data" / "messages.txt"

#: Calls whose arguments people read, beside everything that is raised.
CALLS = {
    "print", "print_from_handler", "print_message", "print_note", "tell", "say", "log", "warning",
    "info", "error", "exception", "report", "_report", "_report_once",
}  # fmt: skip
#: Calls whose third argument are lines that people read, made before it.
RESULTS = {"print_result", "print_run"}


def words(node: ast.expr) -> str:
    """Return the text of an expression, each value in it by its name; "" if it has no text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        parts = (
            f"{{{ast.unparse(part.value)}}}"
            if isinstance(part, ast.FormattedValue)
            else words(part)
            for part in node.values
        )
        return "".join(parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return words(node.left) + words(node.right)
    if isinstance(node, ast.IfExp):
        return " / ".join(filter(None, (words(node.body), words(node.orelse))))
    return ""


def message_calls(tree: ast.AST) -> list[ast.Call]:
    """Return the calls whose arguments are messages, in the order of the source."""
    raised = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise))
    errors = {id(call) for call in raised if isinstance(call, ast.Call)}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    calls = [
        call
        for call in calls
        if id(call) in errors
        or getattr(call.func, "id", getattr(call.func, "attr", "")) in CALLS
        or getattr(call.func, "id", "").endswith("Error")
    ]
    return sorted(calls, key=lambda call: (call.lineno, call.col_offset))


def sentences(expression: ast.AST) -> Iterator[str]:
    """Yield every text in an expression."""
    if isinstance(expression, ast.expr) and (text := words(expression)):
        yield text
        return
    for child in ast.iter_child_nodes(expression):
        yield from sentences(child)


def results(tree: ast.Module) -> Iterator[str]:
    """Yield the texts of the lines that commands give to `print_result` and `print_run`.

    Names and functions of the module stand for what is assigned to them and what they return.
    """
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for function in functions:
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") in RESULTS:
                for lines in call.args[2:]:
                    named = {each.id for each in ast.walk(lines) if isinstance(each, ast.Name)}
                    made = [each for each in functions if each.name in named]
                    values = (value for each in made for value in returned(each))
                    for each in chain([lines], assigned(function, named), values):
                        yield from sentences(each)


def assigned(function: ast.FunctionDef, names: set[str]) -> Iterator[ast.expr]:
    """Yield what is assigned and appended to the variables of these names."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in names:
            yield node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr == "append" and getattr(node.func.value, "id", "") in names:
                yield node.args[0]


def returned(function: ast.FunctionDef) -> Iterator[ast.expr]:
    """Yield what a function returns or yields."""
    for node in ast.walk(function):
        if isinstance(node, ast.Return | ast.Yield) and node.value:
            yield node.value


def collected() -> str:
    """Return all messages of the package, those of a file under its name."""
    blocks = []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        said = (words(each) for call in message_calls(tree) for each in call.args)
        texts = (" ".join(each.split()) for each in chain(said, results(tree)))
        lines = list(dict.fromkeys(f"  {text}" for text in texts if " " in text))
        if lines:
            blocks.append("\n".join([path.relative_to(PACKAGE).as_posix(), *lines]))
    return "\n\n".join(blocks) + "\n"


def test_the_messages_can_be_read_in_one_place():
    renew = "`make docs` renews it; read what changed"
    assert MESSAGES.read_text(encoding="utf-8") == collected(), renew


if __name__ == "__main__":
    MESSAGES.write_text(collected(), encoding="utf-8")
