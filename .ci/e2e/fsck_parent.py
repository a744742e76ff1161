"""Which parts of a disk show the parent's free space, which was filled with a mark nobody else writes.

    fsck_parent.py fill FILE      fills a raw file with the mark, each 4 KiB with its own number
    fsck_parent.py find           reads a disk from standard input, prints the number of each 4 KiB piece that bears the mark
"""

import struct
import sys

PIECE = 4096
MARK = b"bytes of the parent "


def piece(number):
    return (MARK + struct.pack(">Q", number)).ljust(32, b"+") * (PIECE // 32)


if sys.argv[1] == "fill":
    with open(sys.argv[2], "r+b") as file:
        size = file.seek(0, 2)
        file.seek(0)
        for number in range(size // PIECE):
            file.write(piece(number))
else:
    number = 0
    while content := sys.stdin.buffer.read(PIECE):
        # One sector is enough: a piece may be of the parent only in part.
        if MARK in content:
            print(number)
        number += 1
