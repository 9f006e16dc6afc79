"""How compiled code sees memory: a block of named sequences, passed around as one pointer. No model, no events.

Numba hands a NamedTuple of forty arrays to a function as some three hundred arguments. A *block* holds the same
fields behind one address, so that calling is cheap and a request's whole state lies in two cache lines. Code that
only indexes fields (``state.queue_head[0]``, ``len(state.preferred)``) cannot tell, so the batchers compile as they
stand. Addresses that never change during a call are loaded as invariant, which lets LLVM load them once.

Kinds of fields:

* ``Column``: an array somewhere, by address. ``masked`` columns are rings: element i lies at ``i & column_mask``.
* ``Row``: one word of a ring of rows, one row per request in flight: element i lies in row ``i & row_mask``.
* ``Own``: words inside the block itself at an offset that all blocks of one shape share.
* ``Fixed``: words inside the block at an offset known when compiling.

The block's first word is the address of its *shape*: two masks, then (address or offset, length) per field.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.imputils import lower_builtin, lower_getattr_generic
from numba.core.typing.templates import AbstractTemplate, AttributeTemplate, infer_getattr, infer_global, signature
from numba.extending import intrinsic, register_model

WORD = 8
ROW_WORDS = 24
"""Words of one request's row: three cache lines, of which a simple policy touches two."""
SHAPE_ROW_MASK = 0
SHAPE_COLUMN_MASK = 1
SHAPE_FIELDS = 2
"""Word of a shape at which the (address or offset, length) pairs start."""

_INT64 = ir.IntType(64)
_ELEMENTS = {"i8": _INT64, "i4": ir.IntType(32), "f8": ir.DoubleType()}
ELEMENT_BYTES = {"i8": 8, "i4": 4, "f8": 8}


@dataclass(frozen=True)
class Column:
    """An array of ``element`` (i8, i4, f8), ``stride`` elements apart.

    ``constant`` ones never change while compiled code runs.
    """

    element: str = "i8"
    masked: bool = False
    constant: bool = False
    stride: int = 1


@dataclass(frozen=True)
class Row:
    """Word ``word`` of each request's row."""

    word: int


@dataclass(frozen=True)
class Own:
    """Words of the block itself, at an offset found in its shape."""


@dataclass(frozen=True)
class Fixed:
    """``length`` words of the block itself, starting at word ``word``."""

    word: int
    length: int


Place = Column | Row | Own | Fixed


class FieldType(types.Type):
    """One field of a block: data address, length and mask."""

    def __init__(self, element: str, stride: int, *, masked: bool, constant: bool) -> None:
        self.element = element
        self.stride = stride
        self.masked = masked
        self.constant = constant
        self.value = types.float64 if element == "f8" else types.int64
        super().__init__(name=f"preba.field({element},{stride},{masked},{constant})")


class BlockType(types.Type):
    """A block of one layout: an address."""

    def __init__(self, layout_name: str, layout: Mapping[str, Place]) -> None:
        self.places = dict(layout)
        self.order = {name: place for place, name in enumerate(layout)}
        super().__init__(name=f"preba.block({layout_name})")

    def field(self, name: str) -> FieldType | None:
        """Type of a field, ``None`` where there is none of that name."""
        place = self.places.get(name)
        if place is None:
            return None
        if isinstance(place, Column):
            size = ELEMENT_BYTES[place.element] * place.stride
            return FieldType(place.element, size, masked=place.masked, constant=place.constant)
        if isinstance(place, Row):
            return FieldType("i8", ROW_WORDS * WORD, masked=True, constant=False)
        return FieldType("i8", WORD, masked=False, constant=False)


@register_model(BlockType)
class BlockModel(models.PrimitiveModel):
    """What a block is at run time: its address."""

    def __init__(self, dmm: Any, fe_type: BlockType) -> None:  # noqa: ANN401
        super().__init__(dmm, fe_type, _INT64)


@register_model(FieldType)
class FieldModel(models.StructModel):
    """What a field is at run time."""

    def __init__(self, dmm: Any, fe_type: FieldType) -> None:  # noqa: ANN401
        members = [("data", types.int64), ("size", types.int64), ("mask", types.int64)]
        super().__init__(dmm, fe_type, members)


def load_word(builder: Any, address: Any, *, constant: bool) -> Any:  # noqa: ANN401 - LLVM values
    """Emits the load of one int64."""
    value = builder.load(builder.inttoptr(address, _INT64.as_pointer()))
    if constant:
        value.set_metadata("invariant.load", builder.module.add_metadata([]))
    return value


def _offset(builder: Any, address: Any, words: int) -> Any:  # noqa: ANN401 - LLVM values
    return builder.add(address, ir.Constant(_INT64, words * WORD))


@infer_getattr
class BlockAttributes(AttributeTemplate):
    """``block.name`` is a field."""

    key = BlockType

    def generic_resolve(self, block: BlockType, name: str) -> FieldType | None:
        """Type of the attribute."""
        return block.field(name)


@lower_getattr_generic(BlockType)
def _lower_field(context: Any, builder: Any, block_type: BlockType, block: Any, name: str) -> Any:  # noqa: ANN401
    place = block_type.places[name]
    field = cgutils.create_struct_proxy(block_type.field(name))(context, builder)
    field.mask = ir.Constant(_INT64, -1)
    if isinstance(place, Fixed):
        field.data = _offset(builder, block, place.word)
        field.size = ir.Constant(_INT64, place.length)
        return field._getvalue()
    shape = load_word(builder, block, constant=True)
    entry = SHAPE_FIELDS + 2 * block_type.order[name]
    found = load_word(builder, _offset(builder, shape, entry), constant=True)
    field.data = builder.add(block, found) if isinstance(place, Own) else found
    field.size = load_word(builder, _offset(builder, shape, entry + 1), constant=True)
    if isinstance(place, Row):
        field.data = _offset(builder, found, place.word)
        field.mask = load_word(builder, _offset(builder, shape, SHAPE_ROW_MASK), constant=True)
    elif isinstance(place, Column) and place.masked:
        field.mask = load_word(builder, _offset(builder, shape, SHAPE_COLUMN_MASK), constant=True)
    return field._getvalue()


@infer_global(operator.getitem)
class FieldGet(AbstractTemplate):
    """``field[i]``."""

    def generic(self, args: Any, kws: Any) -> Any:  # noqa: ANN401, ARG002
        """Signature for these argument types."""
        if len(args) == 2 and isinstance(args[0], FieldType) and isinstance(args[1], types.Integer):
            return signature(args[0].value, args[0], types.int64)
        return None


@infer_global(operator.setitem)
class FieldSet(AbstractTemplate):
    """``field[i] = value``."""

    def generic(self, args: Any, kws: Any) -> Any:  # noqa: ANN401, ARG002
        """Signature for these argument types."""
        if isinstance(args[0], FieldType) and not args[0].constant and isinstance(args[1], types.Integer):
            return signature(types.none, args[0], types.int64, args[0].value)
        return None


@infer_global(len)
class FieldLen(AbstractTemplate):
    """``len(field)``."""

    def generic(self, args: Any, kws: Any) -> Any:  # noqa: ANN401, ARG002
        """Signature for these argument types."""
        if len(args) == 1 and isinstance(args[0], FieldType):
            return signature(types.int64, args[0])
        return None


def _element(context: Any, builder: Any, field_type: FieldType, field: Any, index: Any) -> Any:  # noqa: ANN401
    proxy = cgutils.create_struct_proxy(field_type)(context, builder, value=field)
    if field_type.masked:
        index = builder.and_(index, proxy.mask)
    address = builder.add(proxy.data, builder.mul(index, ir.Constant(_INT64, field_type.stride)))
    return builder.inttoptr(address, _ELEMENTS[field_type.element].as_pointer())


@lower_builtin(operator.getitem, FieldType, types.Integer)
def _lower_get(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ANN401
    value = builder.load(_element(context, builder, sig.args[0], *args))
    if sig.args[0].constant:
        value.set_metadata("invariant.load", builder.module.add_metadata([]))
    return builder.sext(value, _INT64) if sig.args[0].element == "i4" else value


@lower_builtin(operator.setitem, FieldType, types.Integer, types.Any)
def _lower_set(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ANN401
    field, index, value = args
    if sig.args[0].element == "i4":
        value = builder.trunc(value, _ELEMENTS["i4"])
    builder.store(value, _element(context, builder, sig.args[0], field, index))
    return context.get_dummy_value()


@lower_builtin(len, FieldType)
def _lower_len(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ANN401
    return cgutils.create_struct_proxy(sig.args[0])(context, builder, value=args[0]).size


@intrinsic
def part(typingctx: Any, field: Any, start: Any, count: Any) -> Any:  # noqa: ANN401, ARG001
    """``count`` elements of a field from ``start`` on, sharing its memory."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ANN401
        whole = cgutils.create_struct_proxy(sig.args[0])(context, builder, value=args[0])
        cut = cgutils.create_struct_proxy(sig.args[0])(context, builder)
        skipped = builder.mul(args[1], ir.Constant(_INT64, sig.args[0].stride))
        cut.data = builder.add(whole.data, skipped)
        cut.size = args[2]
        cut.mask = whole.mask
        return cut._getvalue()

    return signature(field, field, types.int64, types.int64), codegen


@intrinsic
def lowest_bit(typingctx: Any, word: Any) -> Any:  # noqa: ANN401, ARG001
    """Place of the lowest set bit of a number that is not 0."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ANN401, ARG001
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return signature(types.int64, types.int64), codegen


@intrinsic
def choose(typingctx: Any, first: Any, one: Any, other: Any) -> Any:  # noqa: ANN401, ARG001
    """``one`` if ``first`` else ``other``, both evaluated: for conditions no processor could foresee."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ANN401, ARG001
        return builder.select(builder.trunc(args[0], ir.IntType(1)), args[1], args[2])

    return signature(types.int64, types.boolean, types.int64, types.int64), codegen


@intrinsic
def peek(typingctx: Any, address: Any, index: Any) -> Any:  # noqa: ANN401, ARG001
    """The ``index``-th int64 at an address, which must be constant memory while compiled code runs."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ANN401, ARG001
        place = builder.add(args[0], builder.mul(args[1], ir.Constant(_INT64, WORD)))
        return load_word(builder, place, constant=True)

    return signature(types.int64, types.int64, types.int64), codegen
