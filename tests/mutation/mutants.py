"""The mutants of a source file: every small change that a test should notice.

Operators
---------
* ``<`` ↔ ``<=``, ``>`` ↔ ``>=``, ``==`` ↔ ``!=``, ``is`` ↔ ``is not``, ``in`` ↔ ``not in``; ``and`` ↔ ``or``;
  ``+`` ↔ ``-``, ``*`` ↔ ``/``, ``//`` → ``/``, ``%`` → ``*``, ``**`` → ``*``, ``|`` ↔ ``&``, also in ``+=``.
* A condition (``if``, ``elif``, ``while``, conditional expression, comprehension, ``case … if``) is negated.
* A number becomes one more and one less, a truth value the other one.
* A statement without which the function still runs (call, ``x.y = …``, ``x[y] = …``, ``x += …``, ``del``, ``raise``)
  is left out; ``continue`` ↔ ``break``; what is returned becomes None.
* A keyword argument of a call is left out.

Not mutated: annotations and names of types, decorators, docstrings, ``assert`` (a check already), ``__all__``, ``__repr__`` and texts
(the words that people read are judged by people).

A mutant is named by its function and by the text of the expression before and after, never by a line, so that the name
stays when code moves. Of several with one name in a function the later ones are numbered.
"""

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]

COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = dict(
    pair
    for one, other in (
        *((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq)),
        *((ast.Is, ast.IsNot), (ast.In, ast.NotIn)),
    )
    for pair in ((one, other), (other, one))
)
COMPUTED: dict[type[ast.operator], type[ast.operator]] = dict(
    (
        *((ast.Add, ast.Sub), (ast.Sub, ast.Add), (ast.Mult, ast.Div), (ast.Div, ast.Mult), (ast.FloorDiv, ast.Div)),
        *((ast.Mod, ast.Mult), (ast.Pow, ast.Mult), (ast.BitOr, ast.BitAnd), (ast.BitAnd, ast.BitOr)),
    )
)
CONDITIONS = (ast.If, ast.While, ast.IfExp)
NOT_WITHIN = ("annotation", "returns", "decorator_list", "type_params")
LEFT_AS_IT_IS = (ast.Assert, ast.Import, ast.ImportFrom, ast.JoinedStr)


class Mutant(NamedTuple):
    """In the file at ``path`` the ``number``-th node of its tree (in the order of ``ast.walk``) gets ``field`` = ``value``."""

    path: str
    line: int
    name: str
    number: int
    field: str
    value: Any

    def tree(self) -> ast.Module:
        """The whole file with the change."""
        tree = parse(self.path)
        node = next(node for number, node in enumerate(ast.walk(tree)) if number == self.number)
        setattr(node, self.field, self.value)
        return ast.fix_missing_locations(tree)

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.name}"


class Change(NamedTuple):
    """``field`` of a node becomes ``value``; ``shown`` is the node whose text tells it best."""

    field: str
    value: Any
    shown: ast.AST


def parse(path: str) -> ast.Module:
    """The tree of a source file of this repository."""
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), path)


def mutants_of(path: str) -> list[Mutant]:
    """All mutants of a file, in the order of the source."""
    tree = parse(path)
    numbers = {id(node): number for number, node in enumerate(ast.walk(tree))}
    found, seen = [], Counter[str]()
    for place, node in _mutable(tree, ""):
        for change in _changes(node):
            name = f"{place}: {_told(node, change)}"
            seen[name] += 1
            name += f" (#{seen[name]})" if seen[name] > 1 else ""
            line = getattr(change.shown, "lineno", getattr(node, "lineno", 0))
            found.append(Mutant(path, line, name, numbers[id(node)], change.field, change.value))
    return found


def _mutable(node: ast.AST, place: str) -> Iterator[tuple[str, ast.AST]]:
    """Every node that may be changed, with the name of the function or class around it."""
    if isinstance(node, LEFT_AS_IT_IS) or getattr(node, "name", "") == "__repr__":
        return
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        place = f"{place}.{node.name}".lstrip(".")
    elif isinstance(node, ast.Assign | ast.AnnAssign) and not place[:1].isidentifier():
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        place = ast.unparse(target)
        if place == "__all__" or _is_type(node.value):
            return
    yield place or "module", node
    for field, child in ast.iter_fields(node):
        if field not in NOT_WITHIN and not (isinstance(node, ast.ClassDef) and field == "keywords"):
            for one in child if isinstance(child, list) else [child]:
                if isinstance(one, ast.AST):
                    yield from _mutable(one, place)


def _changes(node: ast.AST) -> Iterator[Change]:
    """What may be changed at a node itself."""
    match node:
        case ast.Compare():
            for at, op in enumerate(node.ops):
                yield Change("ops", [*node.ops[:at], COMPARED[type(op)](), *node.ops[at + 1 :]], node)
        case ast.BoolOp():
            yield Change("op", ast.Or() if isinstance(node.op, ast.And) else ast.And(), node)
        case ast.BinOp() | ast.AugAssign() if type(node.op) in COMPUTED:
            yield Change("op", COMPUTED[type(node.op)](), node)
        case ast.Constant(value=bool()):
            yield Change("value", not node.value, node)
        case ast.Constant(value=int() | float()):
            for other in (node.value + 1, node.value - 1):
                if other != node.value:  # 1e300 + 1 is
                    yield Change("value", other, node)
        case ast.Return() if node.value is not None and getattr(node.value, "value", node) is not None:
            yield Change("value", None, node)
        case ast.Call():
            for keyword in node.keywords:
                if keyword.arg:
                    yield Change("keywords", [one for one in node.keywords if one is not keyword], node)
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
            if (other := _instead(statement)) is not None:
                yield Change(field, [*statements[:at], other, *statements[at + 1 :]], statement)


def _negated(condition: ast.expr) -> ast.expr:
    if isinstance(condition, ast.UnaryOp) and isinstance(condition.op, ast.Not):
        return condition.operand
    return ast.UnaryOp(ast.Not(), condition)


def _instead(statement: ast.stmt) -> ast.stmt | None:
    """What stands where a statement is left out; None for one whose loss would only be a NameError."""
    match statement:
        case ast.Continue():
            return ast.Break()
        case ast.Break():
            return ast.Continue()
        case ast.Expr(value=ast.Constant()):  # a docstring
            return None
        case ast.Expr() | ast.AugAssign() | ast.Delete() | ast.Raise():
            return ast.Pass()
        case ast.Assign(targets=targets) if not any(_names(one) for one in targets):
            return ast.Pass()
    return None


def _is_type(value: ast.expr | None) -> bool:
    """Whether a module names a type by it, as in ``A | B`` or ``tuple[A, B]``."""
    return isinstance(value, ast.Subscript) or (isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr))


def _names(target: ast.expr) -> bool:
    """Whether the assignment makes a plain variable."""
    return any(isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store) for one in ast.walk(target))


def _told(node: ast.AST, change: Change) -> str:
    """The change as text, before and after."""
    before = ast.unparse(change.shown)
    if change.field in ("body", "orelse", "finalbody"):
        place = next(at for at, one in enumerate(getattr(node, change.field)) if one is change.shown)
        after = ast.unparse(change.value[place])
    elif change.field in ("test", "guard"):
        after = ast.unparse(change.value)
    elif change.field == "ifs":
        after = ast.unparse(_negated(change.shown))
    else:
        changed = copy.copy(node)
        setattr(changed, change.field, change.value)
        after = ast.unparse(changed)
    return " → ".join(" ".join(text.split()) for text in (before, after))
