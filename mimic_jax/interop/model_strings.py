"""Model strings such as "CroCoNet(enc_depth=24, pos_embed='RoPE100')", as released files have: never evaluated."""

import ast
import math
from typing import Any

from mimic_jax.command import InputError

_NAMES = {"inf": math.inf, "nan": math.nan}


def keywords(string: str) -> dict[str, Any]:
    """The keyword arguments of a call as Python writes it.

    Values are numbers, texts, booleans, None, inf, nan, and tuples or lists of such, which all become tuples.

    Raises:
      InputError: the string is anything else. It is shown.
    """
    try:
        call = ast.parse(string.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("it is no call with keyword arguments alone")
        found = {}
        for keyword in call.keywords:
            if keyword.arg is None or keyword.arg in found:
                raise ValueError("it has ** or a name twice")
            found[keyword.arg] = _value(keyword.value)
        return found
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
        shown = string if len(string) <= 500 else string[:500] + "…"
        raise InputError(f"its model string is not understood: {reason}: {shown}") from error


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | None):
        return node.value
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_value(each) for each in node.elts)
    if isinstance(node, ast.Name) and node.id in _NAMES:
        return _NAMES[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _value(node.operand)
        if isinstance(number, int | float) and not isinstance(number, bool):
            return -number
    raise ValueError(f"{ast.unparse(node)[:80]} is no plain value")
