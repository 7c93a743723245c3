"""Jinja's sandbox with the environment that transformers gives to chat templates, and with limits on work.

A chat template is untrusted code. Jinja's sandbox refuses unsafe attributes, but it limits neither time nor memory.
Here every loop iteration, call, filter, operator and printed value checks two limits of a rendering:

- `MAX_SECONDS`, the time since the rendering began;
- `MAX_SIZE`, the sum of the sizes of all results. The size of a text is its number of characters. Each item of a list
  counts as `ITEM` characters.

An operation whose result may exceed `MAX_SIZE` is refused before it starts. A value that is nested deeper than
`MAX_DEPTH`, or would exceed `MAX_SIZE` as text, is refused when it is made.

The memory and the time of a single operation are not limited exactly. A character can take 4 bytes, and `split` takes
about 60 bytes for each part. Run untrusted bundles under a memory limit.
"""

from __future__ import annotations

import functools
import json
import re
import string
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from itertools import chain
from types import GeneratorType
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_SECONDS = 5.0
MAX_SIZE = 1 << 26
MAX_DEPTH = 100
ITEM = 16
_MAX_BITS = 1 << 16  # of an integer
_MANY_DIGITS = re.compile(r"[0-9]{7}")  # a width or a precision of 1,000,000 or more
_STAR_WIDTH = re.compile(r"%[-+ #0-9.]*\*")  # a width or a precision that is an argument
# Methods and filters whose result, or time, can be as large as the product of the sizes of a value and an argument.
_RESULT = ("batch", "center", "indent", "join", "ljust", "replace", "rjust", "round", "slice", "tojson", "zfill")
_TIME = ("lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip", "trim")
_QUADRATIC = ("pprint", "striptags", "sum", "urlize", "wordwrap", "xmlattr")  # filters; time of the square of a size
_CONTAINERS: tuple[type[Collection[Any]], ...] = (
    list,
    tuple,
    dict,
    set,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)
_REFUSED = ("encode", "expandtabs", "from_bytes", "to_bytes", "translate")  # methods that no chat template needs


class LimitError(Exception):
    """A template does too much work."""


class TemplateRefusalError(TemplateError):
    """A template called `raise_exception`."""


class _Work:
    """The work that a rendering may still do."""

    def __init__(self) -> None:
        self._left, self._end = MAX_SIZE, time.monotonic() + MAX_SECONDS

    def add(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise _too_large()
        if time.monotonic() > self._end:
            raise LimitError(f"it takes more than {MAX_SECONDS} seconds")


_work: ContextVar[_Work] = ContextVar("_work")


@contextmanager
def limited() -> Iterator[None]:
    """Limit the work of templates inside a `with` statement."""
    token = _work.set(_Work())
    try:
        yield
    finally:
        _work.reset(token)


def _too_large() -> LimitError:
    return LimitError(f"its texts and lists are larger than {MAX_SIZE} characters")


def _size(value: Any) -> int:
    """Return about how many characters a value has as text.

    Raises:
        LimitError: The value is too large, or is nested too deeply. A small value can be large as text, since lists may
            share their items.
    """
    if isinstance(value, str):
        return len(value)
    size, stack = 0, [iter((value,))]
    while stack:
        for item in stack[-1]:
            size += ITEM + (len(item) if isinstance(item, str) else 0)
            if size > MAX_SIZE:
                raise _too_large()
            if isinstance(item, _CONTAINERS):
                stack.append(chain(item, item.values()) if isinstance(item, dict) else iter(item))
                break
        else:
            stack.pop()
        if len(stack) > MAX_DEPTH:
            raise LimitError(f"it nests lists deeper than {MAX_DEPTH}")
    return size


def _counted(value: Any) -> Any:
    """Return a result after adding its size to the work. A generator adds its items later."""
    if isinstance(value, GeneratorType):
        return _counted_items(value)
    _size(value)
    items = len(value) if isinstance(value, _CONTAINERS) else 0
    _work.get().add(len(value) if isinstance(value, str) else ITEM * items)
    return value


def _counted_items(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _work.get().add(1)
        yield item


def _without_generators(name: str, values: Iterable[Any]) -> tuple[Any, ...]:
    """Return arguments of a method or filter. `join` gets lists, since the length of a generator is not known."""
    return tuple(list(each) if name == "join" and isinstance(each, GeneratorType) else each for each in values)


def _check_growth(name: str, value: Any, arguments: Iterable[Any]) -> None:
    """Check the size that the result of a method or filter may have.

    Raises:
        LimitError: The result may be too large.
    """
    values = list(arguments)
    if name in ("format", "format_map", "%"):
        _check_format(name, str(value), values)
    elif name in _QUADRATIC:
        _check_product(_size(value), _size(value) + _size(values))
    elif name in _RESULT or name in _TIME:
        sizes = [_length(each) for each in values]
        times = _size(value)
        if name == "replace" and len(sizes) > 1:
            times, sizes = times // max(1, sizes[0]) + 1, sizes[1:]
        elif name == "join":
            # The list is the argument of the method, but the value of the filter.
            times = max((len(each) for each in (value, *values) if isinstance(each, Sized)), default=1)
            sizes = [min(_size(each) for each in (value, *values))]
        _check_product(times, max(sizes, default=0))


def _length(argument: Any) -> int:
    """Return how long an argument can make each part of a result, such as a width or the text between two items."""
    if isinstance(argument, int | str):
        return abs(argument) if isinstance(argument, int) else len(argument)
    return max(map(_length, argument), default=0) if isinstance(argument, list | tuple) else 0


def _check_format(name: str, text: str, values: list[Any]) -> None:
    if name == "%":
        wide, fields = bool(_MANY_DIGITS.search(text) or _STAR_WIDTH.search(text)), text.count("%")
    else:
        specs = [spec for _, field, spec, _ in string.Formatter().parse(text) if field is not None]
        wide, fields = any("{" in spec or _MANY_DIGITS.search(spec) for spec in specs if spec), len(specs)
    if wide:
        raise LimitError("it formats a value with a width of 1000000 or more, or with a width that is an argument")
    _check_product(fields, _size(values))


def _check_product(times: int, size: int) -> None:
    if times * size > MAX_SIZE:
        raise _too_large()


def _limited_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    name = "%" if name == "format" else name  # the filter `format` is the operator %
    first = int(hasattr(function, "jinja_pass_arg"))  # Jinja passes the context or the environment to the filter

    @functools.wraps(function)
    def limited_filter(*args: Any, **kwargs: Any) -> Any:
        args = _without_generators(name, args)
        if len(args) > first:
            _check_growth(name, args[first], (*args[first + 1 :], *kwargs.values()))
        return _counted(function(*args, **kwargs))

    return limited_filter


class _CodeGenerator(CodeGenerator):
    """A compiler of templates that counts the items of loops, and the sizes of new texts and lists."""

    def visit_For(self, node: nodes.For, frame: Frame) -> None:  # noqa: N802
        node.iter = nodes.Call(nodes.EnvironmentAttribute("loop_items"), [node.iter], [], None, None)
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.join_texts(context, (")
        for each in node.nodes:
            self.visit(each, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        self._count(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        self._count(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        if node.ctx == "load":
            self._count(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def _count(self, visit: Callable[[Any, Frame], None], node: nodes.Expr, frame: Frame) -> None:
        self.write("environment.counted(")
        visit(node, frame)
        self.write(")")


class _GenerationTag(Extension):
    """The tag `generation`, which marks text that the model generates. The tag does not change the text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the body as a call block, so that a variable set in the body is not visible after the tag."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("body"), [], [], body, lineno=line)

    def body(self, caller: Callable[[], str]) -> str:
        """Return the text of the body."""
        return caller()


class _NewDict:
    """The function `dict`, which is not the class, since a class has methods that are not safe."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """A namespace without names that begin with an underscore. Its text does not show its values."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # noqa: N805, RUF100
        self, fields = args[0], dict(*args[1:], **kwargs)  # `self` may be a name in the namespace
        for name in fields:
            _check_name(name)
        Namespace.__init__(self, fields)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot have the name {name!r}, since it begins with an underscore")


def _raise_exception(message: object) -> NoReturn:
    raise TemplateRefusalError(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Return a value as JSON. Jinja's own filter escapes characters of HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@pass_context  # and so Jinja does not compute constants when it compiles a template
def _printed(_context: Context, value: Any) -> Any:
    _work.get().add(_size(value))
    return value


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's environment for chat templates. Compile and render templates only inside `limited`."""

    code_generator_class = _CodeGenerator
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # computes nothing when it compiles a template
            finalize=_printed,
            extensions=[_GenerationTag, loopcontrols],
        )
        self.filters["tojson"] = _tojson
        self.filters = {name: _limited_filter(name, function) for name, function in self.filters.items()}
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _NewDict(),
            "namespace": _Namespace,
        }
        del self.globals["lipsum"]  # writes random text
        self.loop_items = _counted_items
        self.counted = _counted

    def join_texts(self, context: Context, values: tuple[Any, ...]) -> str:
        """Return the result of the operator `~`."""
        _work.get().add(sum(map(_size, values)))
        return markup_join(values) if context.eval_ctx.autoescape else str_join(values)

    def concat(self, texts: Iterable[str]) -> str:
        """Return the text of a template, a macro or a block."""
        parts = list(texts)
        _work.get().add(sum(map(len, parts)))
        return "".join(parts)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Return whether a template may use an attribute."""
        refused = isinstance(obj, str | int) and attr in _REFUSED
        return not refused and super().is_safe_attribute(obj, attr, value)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function, a method or a macro."""
        name = getattr(function, "__name__", "")
        # Jinja wraps the method `format`.
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        if isinstance(owner, str):  # Jinja passes variables of loops and blocks as arguments with an underscore
            args = _without_generators(name, args)
            named = (value for key, value in kwargs.items() if not key.startswith("_"))
            _check_growth(name, owner, (*args, *named))
        return _counted(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an arithmetic operator."""
        bits = [value.bit_length() if isinstance(value, int) else 0 for value in (left, right)]
        if operator == "**" and isinstance(right, int):
            bits.append(bits[0] * right)
        if max(bits) > _MAX_BITS:
            raise LimitError(f"it computes with integers of more than {_MAX_BITS} bits")
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(times, int) and isinstance(value, Sized):
                    _check_product(times, _size(value))
        elif operator == "%" and isinstance(left, str):
            _check_growth("%", left, right if isinstance(right, tuple) else (right,))
        return _counted(super().call_binop(context, operator, left, right))
