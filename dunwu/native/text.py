"""Hashes of spans of a text and minima of their permutations: `text.c`, or numpy with the same bits.

Legend: N spans or values, W permutations. Needs no torch.
"""

from __future__ import annotations

import ctypes
import functools

import numpy as np
from numpy.typing import NDArray

from dunwu.native.build import library

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]
MERSENNE = (1 << 61) - 1
"""The prime of the permutations (datatrove and datasketch have the same)."""
_CELLS = 1 << 17
"""Products held at a time by the numpy path."""


def hash_spans(data: bytes, starts: Places, ends: Places, seed: int = 0) -> Hashes:
    """XXH64 of `data[starts[i]:ends[i]]` for every i; all (N,).

    Raises:
        ValueError: a span that does not lie in `data`.

    Example:
        >>> [hex(h) for h in hash_spans(b"abc", np.array([0]), np.array([3])).tolist()]
        ['0x44bc2cf5ad770999']
    """
    starts, ends = np.ascontiguousarray(starts, np.int64), np.ascontiguousarray(ends, np.int64)
    wrong = len(starts) != len(ends)
    native = _native()
    if native is not None and not wrong:
        out = np.empty(len(starts), np.uint64)
        places = starts.ctypes.data, ends.ctypes.data, len(starts)
        wrong = bool(native.dunwu_hash_spans(data, len(data), *places, seed, out.ctypes.data))
    elif not wrong:
        from xxhash import xxh64_intdigest

        wrong = bool(((starts < 0) | (ends < starts) | (ends > len(data))).any())
        pairs = zip(starts.tolist(), ends.tolist()) if not wrong else ()
        out = np.fromiter((xxh64_intdigest(data[a:b], seed) for a, b in pairs), np.uint64)
    if wrong:
        raise ValueError(f"spans that are not parts of {len(data)} bytes")
    return out


def minima(values: Hashes, factors: Hashes, terms: Hashes) -> Hashes:
    """min over i of ((values[i] · factors[w] + terms[w]) mod 2^64) mod (2^61 - 1); values (N,), the others (W,).

    Raises:
        ValueError: no values, or factors and terms of different number.
    """
    values, factors, terms = (np.ascontiguousarray(array, np.uint64) for array in (values, factors, terms))
    if not len(values) or factors.shape != terms.shape:
        raise ValueError(f"minima of {len(values)} values, {factors.shape} factors and {terms.shape} terms")
    out = np.empty(len(factors), np.uint64)
    native = _native()
    if native is not None:
        pointers = factors.ctypes.data, terms.ctypes.data
        native.dunwu_minima(values.ctypes.data, len(values), *pointers, len(factors), out.ctypes.data)
        return out
    out[:] = MERSENNE
    prime, shift = np.uint64(MERSENNE), np.uint64(61)
    step = max(1, _CELLS // len(factors))
    for start in range(0, len(values), step):
        products = values[start : start + step, None] * factors + terms
        products = (products & prime) + (products >> shift)
        products -= prime * (products >= prime)
        np.minimum(out, products.min(axis=0), out=out)
    return out


@functools.cache
def _native() -> ctypes.CDLL | None:
    found = library("text")
    if found is not None:
        pointer, count, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint64
        found.dunwu_hash_spans.argtypes = [ctypes.c_char_p, count, pointer, pointer, count, number, pointer]
        found.dunwu_minima.argtypes = [pointer, count, pointer, pointer, count, pointer]
        found.dunwu_hash_spans.restype, found.dunwu_minima.restype = ctypes.c_int, None
    return found
