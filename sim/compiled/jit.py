"""Makes plain Python functions callable from compiled code, as they stand and quickly. Knows Numba, no model.

``numba.extending.register_jitable`` would do, but it turns each of some two hundred functions into machine code of
its own, with wrappers, before the one that is wanted: half a minute. Here a function is typed by its annotations and
lowered into the library of whoever calls it, once, and LLVM optimises the whole a single time.

``int``, ``float``, ``bool`` and ``None`` mean what they say; blocks and fields (``sim.compiled.memory``) are passed on
as they come. Functions must not raise.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from llvmlite import ir
from numba.core import cgutils, compiler, types
from numba.core.imputils import lower_builtin
from numba.core.types.containers import UniTuple
from numba.core.types.misc import VarArg
from numba.core.typing.templates import AbstractTemplate, infer_global, signature

from sim.compiled.memory import BlockType, FieldType

_SCALARS = {
    "int": types.int64,
    "float": types.float64,
    "bool": types.boolean,
    "None": types.none,
    "tuple[int, int]": UniTuple(types.int64, 2),
}
_PASSED = (BlockType, FieldType)
_LIBRARY_MEMO = "_preba_functions"


def functions_of(module: ModuleType) -> list[Callable[..., Any]]:
    """The plain functions that a module defines itself."""
    return [
        function
        for _, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__
    ]


class Callables:
    """The plain functions that compiled code may call; whoever compiles decides which of them are left out.

    Parameters
    ----------
    blocks : mapping of str to BlockType
        What an annotation means as the type of a result.
    """

    def __init__(self, blocks: Mapping[str, BlockType]) -> None:
        self.types = {**_SCALARS, **blocks}
        self.left_out: frozenset[Callable[..., Any]] = frozenset()
        """Functions that the code being compiled never reaches: a call to one of them compiles to nothing."""
        self.chosen: Mapping[Callable[..., Any], Sequence[Callable[..., Any] | None]] = {}
        """Instead of these functions one of others is called: the first argument says which (``None``: nothing)."""

    def add(self, function: Callable[..., Any]) -> None:
        """Lets compiled code that handles blocks call a plain function, annotated with scalars or blocks."""
        parameters = [p.annotation for p in inspect.signature(function).parameters.values()]
        returned = self.types[inspect.signature(function).return_annotation]

        class Typing(AbstractTemplate):
            def generic(self, args: Any, kws: Any) -> Any:  # noqa: ANN401
                if kws or len(args) != len(parameters):
                    return None
                accepted = []
                for annotation, given in zip(parameters, args, strict=True):
                    if isinstance(given, _PASSED):
                        accepted.append(given)
                    elif isinstance(given, types.Number | types.Boolean) and annotation in _SCALARS:
                        accepted.append(_SCALARS[annotation])
                    else:
                        return None
                return signature(returned, *accepted)

        infer_global(function)(Typing)

        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ANN401 - LLVM values
            if function in self.left_out:
                return context.get_constant_null(sig.return_type)
            if function in self.chosen:
                return _call_chosen(context, builder, self.chosen[function], sig, args)
            return _call(context, builder, function, sig, args)

        lower_builtin(function, VarArg(types.Any))(lower)


def _call(context: Any, builder: Any, function: Callable[..., Any], sig: Any, args: Any) -> Any:  # noqa: ANN401
    """Calls a function that has been, or is now, lowered into the library of the caller."""
    compiled = _compile_once(context, function, sig)
    _, result = context.call_internal_no_propagate(builder, compiled.fndesc, sig, args)
    return result


def _call_chosen(
    context: Any,  # noqa: ANN401
    builder: Any,  # noqa: ANN401
    functions: Sequence[Callable[..., Any] | None],
    sig: Any,  # noqa: ANN401
    args: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Calls the function whose place the first argument says, with the other arguments."""
    rest = signature(sig.return_type, *sig.args[1:])
    result = cgutils.alloca_once_value(builder, context.get_constant_null(sig.return_type))
    for place, function in enumerate(functions):
        if function is not None:
            is_it = builder.icmp_signed("==", args[0], ir.Constant(args[0].type, place))
            with builder.if_then(is_it):
                builder.store(_call(context, builder, function, rest, args[1:]), result)
    return builder.load(result)


def _compile_once(context: Any, function: Callable[..., Any], sig: Any) -> Any:  # noqa: ANN401
    """Lowers a function into the library that is being compiled, unless that has been done."""
    library = context.active_code_library
    memo = library.__dict__.setdefault(_LIBRARY_MEMO, {})
    if not memo:
        _make_private_at_the_end(library, memo)
    key = (function, sig)
    if key not in memo:
        flags = compiler.Flags()
        flags.no_compile = True
        flags.no_cpython_wrapper = True
        flags.no_cfunc_wrapper = True
        flags.error_model = "numpy"  # no division by zero can happen, so none is looked for
        memo[key] = compiler.compile_internal(
            context.typing_context, context, library, function, sig.args, sig.return_type, flags, {}
        )
    return memo[key]


def _make_private_at_the_end(library: Any, memo: Mapping[Any, Any]) -> None:  # noqa: ANN401 - numba is not typed
    """Hides a library's functions from other libraries once all of them are in it.

    Two variants of the engine hold functions of the same names; were they public, the one loaded second would call
    those of the first. Besides, LLVM is free to change the calling convention of what nobody else can see.
    """
    finalize = library.finalize

    def privately() -> None:
        for compiled in memo.values():
            library._final_module.get_function(compiled.fndesc.llvm_func_name).linkage = "internal"
        finalize()

    library.finalize = privately
