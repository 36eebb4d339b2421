"""Instructions that kernels emit through LLVM.

Values are those of LLVM: addresses and counts are integers of 64 bits.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils

from safedraft.kernels.instructions import Instructions, find_instructions
from safedraft.kernels.layout import LANES

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
VOID, FLOAT = ir.VoidType(), ir.FloatType()


class Dot:
    """Sums of 16 columns in one register: ``vpdpbusd``."""

    lanes = 16
    """Columns of a register."""
    sums = 16
    """Registers for sums: half of all."""
    name = "llvm.x86.avx512.vpdpbusd.512"

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder
        self.kind = ir.VectorType(I32, self.lanes)
        kind = ir.FunctionType(self.kind, [self.kind] * 3)
        self.instruction = cgutils.get_or_insert_function(builder.module, kind, self.name)

    def load(self, address: ir.Value) -> ir.Value:
        """Load four inputs of each column, a byte each."""
        return load(self.builder, address, self.kind)

    def load_halves(self, address: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Load bytes as in ``load``, and split each into its lower and upper half."""
        both = self.load(address)
        mask = ir.Constant(self.kind, [0x0F0F0F0F] * self.lanes)
        four = ir.Constant(self.kind, [4] * self.lanes)
        return self.builder.and_(both, mask), self.builder.and_(self.builder.lshr(both, four), mask)

    def spread(self, inputs: ir.Value) -> ir.Value:
        """Repeat four inputs of a row for every column."""
        return splat(self.builder, inputs, self.kind)

    def add(self, total: ir.Value, weights: ir.Value, inputs: ir.Value) -> ir.Value:
        """Add the products of four inputs."""
        return self.builder.call(self.instruction, [total, weights, inputs])

    def whole(self, totals: list[ir.Value]) -> ir.Value:
        """Join registers to the sums of ``LANES`` columns."""
        return concatenate(self.builder, totals)


class _Dot256(Dot):
    """Sums of 8 columns in one register: ``vpdpbusd`` in its shorter form."""

    lanes = 8
    sums = 8
    name = "llvm.x86.avx512.vpdpbusd.256"


class _DotAvx2(Dot):
    """Two sums for each of 4 columns in one register: ``vpmaddwd`` on 16-bit numbers."""

    lanes = 4
    sums = 8

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder
        self.kind, self.wide = ir.VectorType(I32, 8), ir.VectorType(I16, 16)
        kind = ir.FunctionType(self.kind, [self.wide] * 2)
        self.instruction = cgutils.get_or_insert_function(
            builder.module, kind, "llvm.x86.avx2.pmadd.wd"
        )

    def load(self, address: ir.Value) -> ir.Value:
        return self.builder.zext(load(self.builder, address, ir.VectorType(I8, 16)), self.wide)

    def load_halves(self, address: ir.Value) -> tuple[ir.Value, ir.Value]:
        both = self.load(address)
        mask, four = (ir.Constant(self.wide, [number] * 16) for number in (15, 4))
        return self.builder.and_(both, mask), self.builder.lshr(both, four)

    def spread(self, inputs: ir.Value) -> ir.Value:
        four = self.builder.bitcast(inputs, ir.VectorType(I8, 4))
        wide = self.builder.bitcast(self.builder.sext(four, ir.VectorType(I16, 4)), I64)
        return self.builder.bitcast(splat(self.builder, wide, ir.VectorType(I64, 4)), self.wide)

    def add(self, total: ir.Value, weights: ir.Value, inputs: ir.Value) -> ir.Value:
        return self.builder.add(total, self.builder.call(self.instruction, [weights, inputs]))

    def whole(self, totals: list[ir.Value]) -> ir.Value:
        pairs = concatenate(self.builder, totals)
        even, odd = (_shuffle(self.builder, pairs, range(first, 2 * LANES, 2)) for first in (0, 1))
        return self.builder.add(even, odd)


_DOTS: dict[Instructions, type[Dot]] = {
    Instructions.AVX512_VNNI: Dot,
    Instructions.AVX_VNNI: _Dot256,
    Instructions.AVX2: _DotAvx2,
}


def make_dot(builder: ir.IRBuilder) -> Dot:
    """The dot products of the processor that is compiled for."""
    instructions = find_instructions()
    assert instructions is not None
    return _DOTS[instructions](builder)


def load(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    """Read a value, wherever it lies: slices and mapped files begin anywhere."""
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def store(builder: ir.IRBuilder, value: ir.Value, address: ir.Value) -> None:
    """Write a value, wherever it lies."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = 1


def local(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """A variable that LLVM keeps in a register."""
    return cgutils.alloca_once_value(builder, value)


def offset(builder: ir.IRBuilder, address: ir.Value, index: ir.Value, width: int) -> ir.Value:
    """``address + index * width``."""
    return builder.add(address, builder.mul(index, I64(width)))


def splat(builder: ir.IRBuilder, value: ir.Value, kind: ir.VectorType) -> ir.Value:
    """A vector that holds one value everywhere."""
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
    return builder.shuffle_vector(
        one, ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(I32, kind.count), None)
    )


def concatenate(builder: ir.IRBuilder, parts: list[ir.Value]) -> ir.Value:
    """Concatenate vectors of equal length, whose number is a power of two."""
    while len(parts) > 1:
        both = zip(parts[::2], parts[1::2], strict=True)
        parts = [_join(builder, one, other) for one, other in both]
    return parts[0]


def _join(builder: ir.IRBuilder, one: ir.Value, other: ir.Value) -> ir.Value:
    places = ir.Constant(ir.VectorType(I32, 2 * one.type.count), list(range(2 * one.type.count)))
    return builder.shuffle_vector(one, other, places)


def _shuffle(builder: ir.IRBuilder, vector: ir.Value, places: range) -> ir.Value:
    chosen = ir.Constant(ir.VectorType(I32, len(places)), list(places))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), chosen)


def multiply_add(
    builder: ir.IRBuilder, one: ir.Value, other: ir.Value, added: ir.Value
) -> ir.Value:
    """``one * other + added``, rounded once."""
    kind = added.type
    signature = ir.FunctionType(kind, [kind] * 3)
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.fma.v{LANES}f32")
    return builder.call(function, [one, other, added])


def prefetch(builder: ir.IRBuilder, address: ir.Value) -> None:
    """Ask for memory that is needed soon."""
    pointer = I8.as_pointer()
    kind = ir.FunctionType(VOID, [pointer, I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [builder.inttoptr(address, pointer), I32(0), I32(3), I32(1)])
