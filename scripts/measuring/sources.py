"""Figures that need only the source text: lines of modules and functions, comments, names of classes."""

from __future__ import annotations

import ast
import io
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median

from .checkouts import PACKAGES, Checkout, Figures

SHORT_LINES = 10
LONG_LINES = 25

# Tokens that are neither code nor comment. A docstring is a STRING token, and is found by the parser instead.
_LAYOUT = {
    tokenize.ENCODING,
    tokenize.NEWLINE,
    tokenize.NL,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.COMMENT,
}
_INSTRUCTIONS_TO_TOOLS = ("# noqa", "# type:", "# mypy:", "#!")


def figures(checkout: Checkout) -> Figures:
    """Measure all source files of the packages."""
    sources = [path.read_text(encoding="utf-8") for package in PACKAGES for path in checkout.modules(package)]
    trees = [ast.parse(source) for source in sources]
    result = {
        f"{package}: modules, lines median and longest": _modules(checkout.modules(package)) for package in PACKAGES
    }
    lengths = [length for tree in trees for length in _function_lengths(tree)]
    for limit in (SHORT_LINES, LONG_LINES):
        result[f"functions of at most {limit} lines, docstring included"] = _share(lengths, limit)
    lines = sum((_lines_by_kind(source, tree) for source, tree in zip(sources, trees, strict=True)), Counter[str]())
    result["lines of code"] = f"{lines['code']:,}"
    for kind in ("comment", "docstring"):
        result[f"{kind} lines per 100 lines of code"] = f"{100 * lines[kind] / lines['code']:.1f}"
    result["class names that occur more than once"] = _repeated_classes(trees)
    return result


def _modules(paths: list[Path]) -> str:
    lengths = [len(path.read_text(encoding="utf-8").splitlines()) for path in paths]
    return f"{len(lengths)}, {median(lengths):.0f}, {max(lengths)}"


def _function_lengths(tree: ast.Module) -> Iterator[int]:
    """Yield the lines of each function from its `def` to its end; functions inside of functions count too."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield (node.end_lineno or node.lineno) - node.lineno + 1


def _share(lengths: list[int], limit: int) -> str:
    return f"{100 * sum(length <= limit for length in lengths) / len(lengths):.1f} %"


def _lines_by_kind(source: str, tree: ast.Module) -> Counter[str]:
    """Count lines with code, with a comment, and of docstrings. A line with code and a comment counts as both."""
    docstrings = _docstring_lines(tree)
    code: set[int] = set()
    comments: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith(_INSTRUCTIONS_TO_TOOLS):
            comments.add(token.start[0])
        elif token.type not in _LAYOUT:
            code.update(range(token.start[0], token.end[0] + 1))
    return Counter(code=len(code - docstrings), comment=len(comments), docstring=len(docstrings))


def _docstring_lines(tree: ast.Module) -> set[int]:
    """Return the lines of all strings that stand alone as a statement: docstrings, also of attributes."""
    strings = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )
    return {line for node in strings for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}


def _repeated_classes(trees: Iterable[ast.Module]) -> str:
    names = Counter(node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    repeated = sorted(name for name, count in names.items() if count > 1)
    return f"{len(repeated)}: {', '.join(repeated)}" if repeated else "0"
