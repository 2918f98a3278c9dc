"""The four 8-bit floats of safetensors: the value of each of their 256 patterns.

``F8_E4M3`` has no infinity and one magnitude of NaN (``float8_e4m3fn`` of torch), ``F8_E5M2`` is a short float16; the
``FNUZ`` ones have no infinity, no -0, a bias of one more, and NaN in its place (Micikevicius et al. 2022, arXiv
2209.05433; Noune et al. 2022, arXiv 2206.02915). Their values here are those that are stored: a scale that lies beside
them is nobody's business here. Called by the kernels, which decode by these tables, and by ``distribution``.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

PATTERNS: Final = 256


class Format(NamedTuple):
    """How a pattern is cut."""

    fraction_bits: int
    bias: int
    has_infinity: bool
    """As in IEEE 754: the highest exponent is infinity and NaN."""
    is_unsigned_zero: bool
    """FNUZ: the pattern of -0 is the only NaN."""


FORMATS: Final = {
    "F8_E4M3": Format(3, 7, has_infinity=False, is_unsigned_zero=False),
    "F8_E5M2": Format(2, 15, has_infinity=True, is_unsigned_zero=False),
    "F8_E4M3FNUZ": Format(3, 8, has_infinity=False, is_unsigned_zero=True),
    "F8_E5M2FNUZ": Format(2, 16, has_infinity=False, is_unsigned_zero=True),
}


def values(dtype: str) -> npt.NDArray[np.float32]:
    """The value of each pattern, shape (256,); exact, and NaN that differ in their patterns differ in their bits.

    Args:
        dtype: One of ``FORMATS``.
    """
    form = FORMATS[dtype]
    magnitudes = np.arange(PATTERNS // 2)
    exponents, fractions = magnitudes >> form.fraction_bits, magnitudes % (1 << form.fraction_bits)
    # Without a leading one below the least exponent: the subnormals.
    significands = fractions + (np.minimum(exponents, 1) << form.fraction_bits)
    shifts = np.maximum(exponents, 1) - form.bias - form.fraction_bits
    positive = np.ldexp(significands.astype(np.float64), shifts).astype(np.float32)
    bits = np.concatenate((positive, -positive)).view(np.uint32)
    for pattern in _nonfinite(form):
        sign, fraction = pattern >> 7, pattern % (1 << form.fraction_bits)
        # Quiet, so that NumPy converts it in silence.
        payload = 0 if form.has_infinity and fraction == 0 else 1 << 22 | fraction
        bits[pattern] = sign << 31 | 0x7F800000 | payload
    return bits.view(np.float32)


def _nonfinite(form: Format) -> list[int]:
    if form.is_unsigned_zero:
        return [0x80]
    if form.has_infinity:
        return [sign | magnitude for sign in (0, 0x80) for magnitude in range(0x7C, 0x80)]
    return [0x7F, 0xFF]
