"""Strings for the tokenizer goldens, the same as tests/model/text/text_samples.h makes.

Both sides draw from a SplitMix64 stream, so that only hashes of the expected ids need to be kept.
"""

import pathlib

DATA = pathlib.Path(__file__).resolve().parent / "data"
MASK = (1 << 64) - 1

# First and last code point of the ranges that single characters are drawn from.
RANGES = [
    (0x20, 0x7E), (0x20, 0x7E), (0x01, 0x1F), (0x80, 0xFF), (0x100, 0x24F), (0x2B0, 0x36F),
    (0x370, 0x3FF), (0x400, 0x52F), (0x531, 0x5F4), (0x600, 0x6FF), (0x900, 0xDFF), (0xE01, 0xEDF),
    (0x1000, 0x13FF), (0x1780, 0x18AF), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x218F),
    (0x2190, 0x2BFF), (0x2C60, 0x2C7F), (0x3000, 0x30FF), (0x3100, 0x33FF), (0x3400, 0x9FFF),
    (0xA640, 0xA7FF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF), (0xF900, 0xFAFF), (0xFB00, 0xFFFD),
    (0x10000, 0x103FF), (0x10400, 0x1044F), (0x11000, 0x11FFF), (0x12000, 0x14400),
    (0x1D400, 0x1D7FF), (0x1F300, 0x1FAFF), (0x20000, 0x323AF), (0xE0100, 0xE01EF),
    (0x10FF00, 0x10FFFF),
]
BLANKS = [" ", " ", " ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "\u2009", "\x0b"]


class Stream:
    def __init__(self, seed):
        self.state = seed & MASK

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def below(self, n):
        return self.next() % n


def fragments():
    return (DATA / "fragments.txt").read_text(encoding="utf-8").split("\n")[:-1]


def sample(seed, index, pieces):
    """The string number `index` of the stream `seed`."""
    rng = Stream((seed * 0x100000001 + index * 0x9E3779B1) & MASK)
    out = []
    for _ in range(rng.below(13)):
        kind = rng.below(8)
        if kind < 4:
            out.append(pieces[rng.below(len(pieces))])
        elif kind == 4:
            first, last = RANGES[rng.below(len(RANGES))]
            for _ in range(1 + rng.below(4)):
                out.append(chr(first + rng.below(last - first + 1)))
        elif kind == 5:
            blank = BLANKS[rng.below(len(BLANKS))]
            out.append(blank * (1 + rng.below(5 if rng.below(8) else 40)))
        elif kind == 6:
            out.append("".join(chr(48 + rng.below(10)) for _ in range(1 + rng.below(9))))
        else:
            out.append(chr(97 + rng.below(26)) * (1 + rng.below(12)))
    return "".join(out)


def sweep_code_points():
    """Every code point of the planes in use, and a sample of the others, in blocks of 4096."""
    for first in range(0, 0x110000, 4096):
        dense = first < 0x20000 or 0x2F000 <= first < 0x33000 or 0xE0000 <= first < 0xE1000
        step = 1 if dense else 64
        yield first, [c for c in range(first, first + 4096, step) if not 0xD800 <= c <= 0xDFFF]


def sweep_text(c):
    """A code point among letters, digits, blanks and punctuation, and twice in a row."""
    ch = chr(c)
    return f"a{ch}b {ch}1{ch}{ch}\n{ch}. "


def fnv(hash_value, ids):
    for i in ids:
        for shift in (0, 8, 16, 24):
            hash_value = ((hash_value ^ ((i >> shift) & 255)) * 0x100000001B3) & MASK
    return hash_value


FNV_START = 0xCBF29CE484222325
