"""The project's stable 64-bit hash of ids, vectorised.

Definition (the same on every platform and version; the tests hold vectors of it):

* ``mix(z)`` is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom
  number generators", OOPSLA 2014), with its increment, all modulo 2^64::

      z += 0x9E3779B97F4A7C15
      z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9
      z = (z ^ z >> 27) * 0x94D049BB133111EB
      z ^ z >> 31

* an integer's hash is ``mix`` of its two's complement;
* a string's hash reads its UTF-8 bytes as little-endian 64-bit words, the last one filled up with
  zero bytes: ``h = mix(number of bytes)``, then ``h = mix(h ^ word)`` for every word;
* a hash becomes one of ``n`` table rows as ``(h >> 32) * n >> 32``, which is as uniform as a
  modulo and needs no division. ``n`` must be below 2^32.

Two ids of a table of n rows share a row with probability 1/n; two distinct strings share a 64-bit
hash with probability 2^-64.
"""

import numpy as np
import pyarrow as pa

_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_FACTOR_1 = np.uint64(0xBF58476D1CE4E5B9)
_FACTOR_2 = np.uint64(0x94D049BB133111EB)
# Elements hashed at a time: a piece, its hashes and scratch stay in the second-level cache.
_PIECE = 8192


def mix(values: np.ndarray) -> np.ndarray:
    """Hashes integers: uint64 (n,) → uint64 (n,). The input is left as it is."""
    hashed = np.array(values, dtype=np.uint64)
    scratch = np.empty(min(_PIECE, hashed.size), np.uint64)
    for start in range(0, hashed.size, _PIECE):
        z = hashed[start : start + _PIECE]
        _mix_piece(z, scratch[: z.size])
    return hashed


def reduce_to_rows(hashes: np.ndarray, rows: int) -> np.ndarray:
    """Maps uint64 hashes (n,) uniformly to int64 rows 0 … rows-1."""
    assert 0 < rows < 1 << 32, rows
    return ((hashes >> np.uint64(32)) * np.uint64(rows) >> np.uint64(32)).view(np.int64)


def hash_integers(values: np.ndarray, rows: int, offset: int, out: np.ndarray) -> None:
    """Writes ``offset + reduce_to_rows(mix(values), rows)`` of int64 (n,) into ``out``."""
    assert 0 < rows < 1 << 32, rows
    unsigned = values.view(np.uint64)
    size = min(_PIECE, values.size)
    hashes, scratches = np.empty(size, np.uint64), np.empty(size, np.uint64)
    half, factor, first = np.uint64(32), np.uint64(rows), np.uint64(offset)
    for start in range(0, values.size, _PIECE):
        piece = unsigned[start : start + _PIECE]
        z, scratch = hashes[: piece.size], scratches[: piece.size]
        np.copyto(z, piece)
        _mix_piece(z, scratch)
        np.right_shift(z, half, out=z)
        np.multiply(z, factor, out=z)
        np.right_shift(z, half, out=z)
        np.add(z, first, out=out[start : start + _PIECE], casting="unsafe")


def hash_strings(strings: pa.Array) -> np.ndarray:
    """Hashes an Arrow array of strings to uint64 (n,); nulls get the hash of the empty string."""
    if strings.null_count:
        strings = strings.fill_null("")
    n = len(strings)
    if n == 0:
        return np.empty(0, np.uint64)
    _, offsets_buffer, bytes_buffer = strings.buffers()
    kind = np.int64 if pa.types.is_large_string(strings.type) else np.int32
    offsets = np.frombuffer(offsets_buffer, kind)[strings.offset : strings.offset + n + 1]
    offsets = offsets.astype(np.int64)
    starts, lengths = offsets[:-1], np.diff(offsets)
    words = _unaligned_words(bytes_buffer, int(offsets[-1]))
    hashed = mix(lengths.view(np.uint64))
    # Round k feeds the k-th word of every string that has one; few strings are long.
    active = np.flatnonzero(lengths > 0)
    done = 0
    while active.size:
        word = words[starts[active] + done]
        missing_bytes = np.maximum(8 - (lengths[active] - done), 0).astype(np.uint64)
        keep = np.uint64(0xFFFFFFFFFFFFFFFF) >> (missing_bytes * np.uint64(8))
        hashed[active] = mix(hashed[active] ^ (word & keep))
        done += 8
        active = active[lengths[active] > done]
    return hashed


def expected_collision_rate(distinct: int, rows: int) -> float:
    """Expected share of distinct ids that share a row with another one.

    ``1 - (1 - 1/rows)^(distinct - 1)`` with ``rows`` the rows ids are hashed to.
    """
    if distinct < 2:
        return 0.0
    return float(-np.expm1((distinct - 1) * np.log1p(-1.0 / rows))) if rows > 1 else 1.0


def _mix_piece(z: np.ndarray, scratch: np.ndarray) -> None:
    np.add(z, _INCREMENT, out=z)
    np.right_shift(z, np.uint64(30), out=scratch)
    np.bitwise_xor(z, scratch, out=z)
    np.multiply(z, _FACTOR_1, out=z)
    np.right_shift(z, np.uint64(27), out=scratch)
    np.bitwise_xor(z, scratch, out=z)
    np.multiply(z, _FACTOR_2, out=z)
    np.right_shift(z, np.uint64(31), out=scratch)
    np.bitwise_xor(z, scratch, out=z)


def _unaligned_words(buffer: pa.Buffer | None, size: int) -> np.ndarray:
    """A view whose item i is the little-endian word at bytes i … i+7, for i below ``size``."""
    data = np.frombuffer(buffer, np.uint8) if buffer is not None else np.empty(0, np.uint8)
    if data.size < size + 7:
        data = np.concatenate([data[:size], np.zeros(8, np.uint8)])
    return np.ndarray((data.size - 7,), np.dtype("<u8"), buffer=data, strides=(1,))
