"""Jinja's sandbox with limits on the work of a template.

A chat template is untrusted code. Jinja's sandbox refuses unsafe attributes. This module adds three limits:

- `MAX_SECONDS`: the time of a rendering. Each loop iteration, call, filter, operator and printed value checks the time.
- `MAX_SIZE`: the sum of the sizes of all results: the characters of texts, and the items of lists and tuples.
- The arguments that make a single result huge: `x * 10**9`, huge powers, and widths above `MAX_WIDTH`.

The memory and the time of a single operation are not limited otherwise. A single operation can also exhaust the stack,
which ends the process (the hash of a deeply nested tuple). Run untrusted bundles in a process with a memory limit.
"""

from __future__ import annotations

import functools
import re
import string
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from jinja2 import nodes, pass_eval_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_SECONDS = 5.0
MAX_SIZE = 1 << 26
MAX_WIDTH = 9999
_MAX_BITS = 1 << 16  # of an integer
# A width above MAX_WIDTH or from an argument: in a field of `format`, which reads digits of all scripts, and for `%`.
_WIDE_SPEC, _WIDE_PERCENT = re.compile(r"\d{5}|\{"), re.compile(r"[%)][-+ #0-9.]*([0-9]{5}|\*)")
# Methods and filters with an integer argument that sets the size of the result.
_WIDTHS = ["batch", "center", "expandtabs", "indent", "ljust", "rjust", "round", "slice", "to_bytes", "tojson", "zfill"]


class _Work:
    """The work that a compilation or a rendering may still do."""

    def __init__(self) -> None:
        self._left, self._end = MAX_SIZE, time.monotonic() + MAX_SECONDS

    def add(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise SecurityError(f"its texts and lists together have more than {MAX_SIZE} characters and items")
        if time.monotonic() > self._end:
            raise SecurityError(f"it takes more than {MAX_SECONDS} seconds")


_work: ContextVar[_Work] = ContextVar("_work")


def start_limits() -> None:
    """Start the limits of one compilation or one rendering in the current thread or task."""
    _work.set(_Work())


def _counted(value: Any) -> Any:
    """Return a value after adding its size to the work."""
    _work.get().add(len(value) if isinstance(value, str | list | tuple) else 0)
    return value


def _check_width(name: str, arguments: Iterable[Any]) -> None:
    for value in arguments:
        if name in _WIDTHS and isinstance(value, int) and abs(value) > MAX_WIDTH:
            raise SecurityError(f"{name}: found the argument {value}, expected at most {MAX_WIDTH}")


def _check_format(wide: re.Pattern[str], text: str) -> None:
    if wide.search(text):
        raise SecurityError(f"it formats a value with a width above {MAX_WIDTH}, or with a width that is an argument")


def _limited_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    value_index = int(hasattr(function, "jinja_pass_arg"))  # Jinja passes its context to some filters, before the value

    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        _check_width(name, (*args[value_index + 1 :], *kwargs.values()))
        if name == "format":
            _check_format(_WIDE_PERCENT, str(args[value_index]))
        return _counted(function(*args, **kwargs))

    return limited


class _CodeGenerator(CodeGenerator):
    """A compiler of templates that passes loops and operators `~` to methods of `Sandbox`."""

    def visit_For(self, node: nodes.For, frame: Frame) -> None:  # noqa: N802
        node.iter = nodes.Call(nodes.EnvironmentAttribute("loop_items"), [node.iter], [], None, None)
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.visit(nodes.Call(nodes.EnvironmentAttribute("join_texts"), node.nodes, [], None, None), frame)


class _GenerationTag(Extension):
    """The tag `generation`, which marks text that the model generates. The tag does not change the text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the body as a call block, so that a variable set in the body is not visible after the tag."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_text"), [], [], body, lineno=line)

    def _text(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """The function `dict`. The class itself has methods that the sandbox does not refuse, such as `update`."""

    fromkeys = staticmethod(dict.fromkeys)

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's environment with additional functions and filters. Call `start_limits` before compiling and rendering."""

    code_generator_class = _CodeGenerator
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self, functions: Mapping[str, Callable[..., Any]], filters: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
        self.finalize = lambda value: _counted(value if isinstance(value, str) else str(value))  # a printed value
        self.filters = {name: _limited_filter(name, each) for name, each in (self.filters | dict(filters)).items()}
        self.globals |= {"dict": _Dict(), **functions}
        del self.globals["lipsum"]  # writes random text of any length

    def loop_items(self, items: Iterable[Any]) -> Iterator[Any]:
        """Return the items of a loop."""
        for item in items:
            _work.get().add(0)
            yield item

    @pass_eval_context
    def join_texts(self, eval_ctx: nodes.EvalContext, *values: Any) -> str:
        """Return the result of the operator `~`."""
        return markup_join(values) if eval_ctx.autoescape else str_join(values)

    def concat(self, texts: Iterable[str]) -> str:
        """Return the text of a template, a macro or a block."""
        return "".join(map(_counted, texts))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return a safe function for the methods `format` and `format_map` of a text; None for other values."""
        function = super().wrap_str_format(value)
        for _, _, spec, _ in string.Formatter().parse(value.__self__) if function else ():
            _check_format(_WIDE_SPEC, spec or "")
        return function

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function, a method or a macro."""
        _check_width(getattr(function, "__name__", ""), (*args, *kwargs.values()))
        return _counted(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an arithmetic operator."""
        bits = [value.bit_length() for value in (left, right) if isinstance(value, int)]
        if operator == "**" and len(bits) == 2:
            bits.append(bits[0] * right)
        if max(bits, default=0) > _MAX_BITS:
            raise SecurityError(f"it computes with integers of more than {_MAX_BITS} bits")
        for value, times in ((left, right), (right, left)):
            if operator == "*" and isinstance(value, str | list | tuple) and isinstance(times, int):
                _work.get().add(len(value) * max(times, 0))
        if operator == "%" and isinstance(left, str):
            _check_format(_WIDE_PERCENT, left)
        return _counted(super().call_binop(context, operator, left, right))
