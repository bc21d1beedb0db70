"""The inner loop every NVFP4 matmul shares: stream packed weights, decode them in registers, multiply, accumulate.

Layout (made by `layout.repack`). A weight (N, K) is cut into blocks of BN rows and BK columns, each in one piece: words (BN, BK/8)
int32 and scales (BN, BK/32) int16, row after row. Word j = 4 s + t of a row holds the eight codes that lane t of a matrix instruction
needs of the columns 32 s ... 32 s + 31: columns 32 s + 16 i + 8 h + 2 t + b for i, h, b in {0, 1}, at bits 16 b + 8 i + 4 h. So what a
thread loads is what it multiplies, two neighbouring columns come out of one operation, and no code crosses lanes. A scale word
holds the scales of columns 32 s ... 32 s + 15 in its low byte and of the other sixteen in its high byte.

Decoding. The bits of an E2M1 code, moved into a bfloat16's sign, low exponent and high mantissa bits, read as value * 2^-126 (its
subnormal 0.5 included). A scale is stored as 5 bits of exponent and 3 of mantissa, without sign or subnormals; moved likewise, it
reads as scale * 2^112. A weight is their product, exact in bfloat16 (6 significant bits) and 2^14 too small; the epilogue puts
2^14 and the global scale back into the float32 sum.

NATIVE is false in Triton's interpreter, which has neither inline assembly nor arithmetic on bfloat16: there the same numbers are held in
float32, where every product is exact as well.

The weights are the left operand (the side of 64 or 128 rows) and the tokens the right one: so 16 or 32 tokens fill a matrix
instruction, where tokens on the left would waste most of it.
"""

import triton
import triton.language as tl

UNDO = tl.constexpr(2.0**14)
_SIGN = tl.constexpr(-0x7FFF8000)  # 0x80008000
_MAGNITUDE = tl.constexpr(0x01C001C0)
_HIGH = tl.constexpr(-0x10000)  # 0xFFFF0000
_TWICE = tl.constexpr(0x00100010)  # a byte, moved left by four, in both halves of a word
_BIAS = tl.constexpr(0x72807280)  # exponent e stands for 2^(e - 10); bfloat16 adds 127, and 112 more are wanted
# x * y - 0 in both halves; there is no bf16x2 product before sm_90, and the sum with -0 changes no bit
_TIMES = tl.constexpr("{ .reg .b32 zero; mov.b32 zero, 0x80008000; fma.rn.bf16x2 $0, $1, $2, zero; }")


@triton.jit
def _times(code, scale, NATIVE: tl.constexpr):
    """Products of the bfloat16 pairs of two int32 tensors, joined in a last dimension of two; float32 if not NATIVE."""
    if NATIVE:
        product = tl.inline_asm_elementwise(_TIMES, "=r,r,r", [code, scale], tl.int32, True, 1)  # pyright: ignore
        low = product.to(tl.int16).to(tl.bfloat16, bitcast=True)
        high = (product >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)  # pyright: ignore[reportOperatorIssue]
    else:
        low = (code << 16).to(tl.float32, bitcast=True) * (scale << 16).to(tl.float32, bitcast=True)
        high = (code & _HIGH).to(tl.float32, bitcast=True) * (scale & _HIGH).to(tl.float32, bitcast=True)
    return tl.join(low, high)


@triton.jit
def decode(words, scales, BN: tl.constexpr, BK: tl.constexpr, NATIVE: tl.constexpr):
    """Words (BN, BK/8) int32 and scales (BN, BK/32) int16 of a block -> its weights (BN, BK) bfloat16, times 2^-14."""
    pairs = tl.reshape(tl.broadcast_to(scales.to(tl.int32)[:, :, None], (BN, BK // 32, 4)), (BN, BK // 8))
    first = (pairs & 0xFF) * _TWICE + _BIAS
    second = ((pairs >> 8) & 0xFF) * _TWICE + _BIAS
    p00 = _times(((words << 12) & _SIGN) | ((words << 6) & _MAGNITUDE), first, NATIVE)
    p01 = _times(((words << 8) & _SIGN) | ((words << 2) & _MAGNITUDE), first, NATIVE)
    p10 = _times(((words << 4) & _SIGN) | ((words >> 2) & _MAGNITUDE), second, NATIVE)
    p11 = _times((words & _SIGN) | ((words >> 6) & _MAGNITUDE), second, NATIVE)
    codes = tl.join(tl.join(p00, p01), tl.join(p10, p11))  # (BN, BK/8, b, h, i)
    codes = tl.permute(tl.reshape(codes, (BN, BK // 32, 4, 2, 2, 2)), (0, 1, 5, 4, 2, 3))
    return tl.reshape(codes, (BN, BK))


@triton.jit
def block_dot(acc, words, scales, x, BN: tl.constexpr, BK: tl.constexpr, NATIVE: tl.constexpr):
    """Add W x of one block to acc (BN, BM) float32; `words` and `scales` point at the block, x is (BK, BM) bfloat16."""
    rows = tl.arange(0, BN)[:, None]
    word = tl.load(words + rows * (BK // 8) + tl.arange(0, BK // 8)[None, :])
    scale = tl.load(scales + rows * (BK // 32) + tl.arange(0, BK // 32)[None, :])
    if not NATIVE:
        x = x.to(tl.float32)
    return tl.dot(decode(word, scale, BN, BK, NATIVE), x, acc)
