"""Makes plain Python functions callable from compiled code, as they stand and quickly. Knows Numba, no model.

``numba.extending.register_jitable`` would do, but it turns each of some two hundred functions into machine code of
its own, with wrappers, before the one that is wanted: half a minute. Here a function is typed by its annotations and
lowered into the library of whoever calls it, once, and LLVM optimises the whole a single time.

``int``, ``float``, ``bool`` and ``None`` mean what they say; blocks and fields (``sim.compiled.memory``) are passed on
as they come. Functions must not raise.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from numba.core import compiler, types
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature

from sim.compiled.memory import BlockType, FieldType

_SCALARS = {
    "int": types.int64,
    "float": types.float64,
    "bool": types.boolean,
    "None": types.none,
    "tuple[int, int]": types.UniTuple(types.int64, 2),
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


def make_callable(function: Callable[..., Any], blocks: Mapping[str, BlockType]) -> None:
    """Lets compiled code that handles blocks call a plain function.

    Parameters
    ----------
    function : callable
        Annotated with scalars, or with names that mean blocks.
    blocks : mapping of str to BlockType
        What an annotation means as the type of a result.
    """
    parameters = [p.annotation for p in inspect.signature(function).parameters.values()]
    returned = {**_SCALARS, **blocks}[inspect.signature(function).return_annotation]

    class Typing(AbstractTemplate):  # type: ignore[misc]  # numba is not typed
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
        compiled = _compile_once(context, function, sig)
        _, result = context.call_internal_no_propagate(builder, compiled.fndesc, sig, args)
        return result

    lower_builtin(function, types.VarArg(types.Any))(lower)


def _compile_once(context: Any, function: Callable[..., Any], sig: Any) -> Any:  # noqa: ANN401
    """Lowers a function into the library that is being compiled, unless that has been done."""
    library = context.active_code_library
    memo = library.__dict__.setdefault(_LIBRARY_MEMO, {})
    key = (function, sig)
    if key not in memo:
        flags = compiler.Flags()
        flags.no_compile = True
        flags.no_cpython_wrapper = True
        flags.no_cfunc_wrapper = True
        flags.error_model = "numpy"  # no division by zero can happen, so none is looked for
        compiled = compiler.compile_internal(
            context.typing_context, context, library, function, sig.args, sig.return_type, flags, {}
        )
        # Nobody else calls it: what LLVM inlines everywhere need not become machine code of its own.
        library._final_module.get_function(compiled.fndesc.llvm_func_name).linkage = "linkonce_odr"
        memo[key] = compiled
    return memo[key]
