"""The mutants of a source file: every small change for which a test should fail.

Operators
---------
* ``<`` ↔ ``<=``, ``>`` ↔ ``>=``, ``==`` ↔ ``!=``, ``is`` ↔ ``is not``, ``in`` ↔ ``not in``; ``and`` ↔ ``or``;
  ``+`` ↔ ``-``, ``*`` ↔ ``/``, ``//`` → ``/``, ``%`` → ``*``, ``**`` → ``*``, ``|`` ↔ ``&``, also in ``+=``.
* A condition (``if``, ``elif``, ``while``, conditional expression, comprehension, ``case … if``) is negated.
* A number is increased and decreased by one, a boolean is inverted.
* A statement that the function can run without (call, ``x.y = …``, ``x[y] = …``, ``x += …``, ``del``, ``raise``) is removed;
  ``continue`` ↔ ``break``; a returned value becomes None.
* A keyword argument of a call is removed.

Not mutated: annotations and type expressions, decorators, docstrings, ``assert`` (already a check), ``__all__``,
``__repr__`` and strings (wording is reviewed by people).

A mutant is named by its function and the text of the expression before and after, without a line number, so that the
name survives when code moves. Mutants with the same name in one function are numbered.
"""

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[3]

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = dict(
    pair
    for first, second in (
        *((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq)),
        *((ast.Is, ast.IsNot), (ast.In, ast.NotIn)),
    )
    for pair in ((first, second), (second, first))
)
OPERATORS: dict[type[ast.operator], type[ast.operator]] = dict(
    (
        *((ast.Add, ast.Sub), (ast.Sub, ast.Add), (ast.Mult, ast.Div), (ast.Div, ast.Mult), (ast.FloorDiv, ast.Div)),
        *((ast.Mod, ast.Mult), (ast.Pow, ast.Mult), (ast.BitOr, ast.BitAnd), (ast.BitAnd, ast.BitOr)),
    )
)
CONDITIONS = (ast.If, ast.While, ast.IfExp)
NOT_WITHIN = ("annotation", "returns", "decorator_list", "type_params")
NOT_MUTATED = (ast.Assert, ast.Import, ast.ImportFrom, ast.JoinedStr)


class Mutant(NamedTuple):
    """A change of one node: the ``number``-th of the tree of ``path`` (in the order of ``ast.walk``) gets ``field`` = ``value``."""

    path: str
    line: int
    name: str
    number: int
    field: str
    value: Any

    def tree(self) -> ast.Module:
        """Return the tree of the file with the change."""
        tree = parse(self.path)
        node = next(node for number, node in enumerate(ast.walk(tree)) if number == self.number)
        setattr(node, self.field, self.value)
        return ast.fix_missing_locations(tree)

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.name}"


class Change(NamedTuple):
    """``field`` of a node becomes ``value``; ``shown`` is the node whose text names the mutant."""

    field: str
    value: Any
    shown: ast.AST


def parse(path: str) -> ast.Module:
    """Return the tree of a source file of this repository."""
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), path)


def mutants_of(path: str) -> list[Mutant]:
    """Return all mutants of a file, in source order."""
    tree = parse(path)
    numbers = {id(node): number for number, node in enumerate(ast.walk(tree))}
    mutants, used_names = [], Counter[str]()
    for scope, node in _mutable(tree, ""):
        for change in _changes(node):
            name = f"{scope}: {_describe(node, change)}"
            used_names[name] += 1
            name += f" (#{used_names[name]})" if used_names[name] > 1 else ""
            line = getattr(change.shown, "lineno", getattr(node, "lineno", 0))
            mutants.append(Mutant(path, line, name, numbers[id(node)], change.field, change.value))
    return mutants


def _mutable(node: ast.AST, scope: str) -> Iterator[tuple[str, ast.AST]]:
    """Yield every node that may be changed, with the name of its function or class."""
    if isinstance(node, NOT_MUTATED) or getattr(node, "name", "") == "__repr__":
        return
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        scope = f"{scope}.{node.name}".lstrip(".")
    elif isinstance(node, ast.Assign | ast.AnnAssign) and not scope[:1].isidentifier():
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        scope = ast.unparse(target)
        if scope == "__all__" or _is_type_expression(node.value):
            return
    yield scope or "module", node
    for field, child in ast.iter_fields(node):
        if field not in NOT_WITHIN and not (isinstance(node, ast.ClassDef) and field == "keywords"):
            for inner in child if isinstance(child, list) else [child]:
                if isinstance(inner, ast.AST):
                    yield from _mutable(inner, scope)


def _changes(node: ast.AST) -> Iterator[Change]:
    """Yield the changes of a node itself."""
    match node:
        case ast.Compare():
            for at, op in enumerate(node.ops):
                yield Change("ops", [*node.ops[:at], COMPARISONS[type(op)](), *node.ops[at + 1 :]], node)
        case ast.BoolOp():
            yield Change("op", ast.Or() if isinstance(node.op, ast.And) else ast.And(), node)
        case ast.BinOp() | ast.AugAssign() if type(node.op) in OPERATORS:
            yield Change("op", OPERATORS[type(node.op)](), node)
        case ast.Constant(value=bool()):
            yield Change("value", not node.value, node)
        case ast.Constant(value=int() | float()):
            for number in (node.value + 1, node.value - 1):
                if number != node.value:  # 1e300 + 1 is equal
                    yield Change("value", number, node)
        case ast.Return() if node.value is not None and getattr(node.value, "value", node) is not None:
            yield Change("value", None, node)
        case ast.Call():
            for keyword in node.keywords:
                if keyword.arg:
                    yield Change("keywords", [kept for kept in node.keywords if kept is not keyword], node)
    if isinstance(node, CONDITIONS):
        yield Change("test", _negated(node.test), node.test)
    for field in ("ifs", "guard"):
        match getattr(node, field, None):
            case [*conditions]:
                for at, condition in enumerate(conditions):
                    yield Change(field, [*conditions[:at], _negated(condition), *conditions[at + 1 :]], condition)
            case ast.expr() as guard:
                yield Change(field, _negated(guard), guard)
    for field in ("body", "orelse", "finalbody"):
        statements = getattr(node, field, None)
        for at, statement in enumerate(statements if isinstance(statements, list) else ()):
            if (replacement := _replacement(statement)) is not None:
                yield Change(field, [*statements[:at], replacement, *statements[at + 1 :]], statement)


def _negated(condition: ast.expr) -> ast.expr:
    if isinstance(condition, ast.UnaryOp) and isinstance(condition.op, ast.Not):
        return condition.operand
    return ast.UnaryOp(ast.Not(), condition)


def _replacement(statement: ast.stmt) -> ast.stmt | None:
    """Return the replacement of a removed statement; None if its removal would only cause a NameError."""
    match statement:
        case ast.Continue():
            return ast.Break()
        case ast.Break():
            return ast.Continue()
        case ast.Expr(value=ast.Constant()):  # a docstring
            return None
        case ast.Expr() | ast.AugAssign() | ast.Delete() | ast.Raise():
            return ast.Pass()
        case ast.Assign(targets=targets) if not any(_assigns_name(target) for target in targets):
            return ast.Pass()
    return None


def _is_type_expression(value: ast.expr | None) -> bool:
    """Return whether the value is a type expression, as in ``A | B`` or ``tuple[A, B]``."""
    return isinstance(value, ast.Subscript) or (isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr))


def _assigns_name(target: ast.expr) -> bool:
    """Return whether the assignment binds a plain variable."""
    return any(isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) for node in ast.walk(target))


def _describe(node: ast.AST, change: Change) -> str:
    """Return the change as text: before → after."""
    before = ast.unparse(change.shown)
    if change.field in ("body", "orelse", "finalbody"):
        index = next(at for at, inner in enumerate(getattr(node, change.field)) if inner is change.shown)
        after = ast.unparse(change.value[index])
    elif change.field in ("test", "guard"):
        after = ast.unparse(change.value)
    elif change.field == "ifs":
        after = ast.unparse(_negated(change.shown))
    else:
        changed = copy.copy(node)
        setattr(changed, change.field, change.value)
        after = ast.unparse(changed)
    return " → ".join(" ".join(text.split()) for text in (before, after))
