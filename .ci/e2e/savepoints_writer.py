"""Four connections that count in blocks of their own, and a check that a raw disk is a state of one moment.

    savepoints_writer.py write URI FLUSHED STOP   until the file STOP is there; FLUSHED always says what is flushed
    savepoints_writer.py check RAW FLUSHED        the disk holds, of each connection, everything up to some write and nothing behind it
"""

import os
import struct
import sys
import threading

CONNECTIONS, CELLS, CELL = 4, 300, 4096
SPREAD = 8192  # other cells lie between those of one connection, so that there are first touches in every leaf


def place(connection, number):
    return 65536 + ((number % CELLS) * CONNECTIONS + connection) * SPREAD


def content(connection, number):
    return struct.pack("<QQ", connection + 1, number) * (CELL // 16)


def write(uri, flushed, stop):
    import nbd

    done, lock, failed = [0] * CONNECTIONS, threading.Lock(), []

    def work(connection):
        try:
            handle = nbd.NBD()
            handle.connect_uri(uri)
            number = 0
            while not os.path.exists(stop):
                for _ in range(16):
                    number += 1
                    handle.pwrite(content(connection, number), place(connection, number))
                handle.flush()
                with lock:
                    done[connection] = number
                    with open(flushed + ".new", "w", encoding="ascii") as file:
                        print(*done, file=file)
                    os.rename(flushed + ".new", flushed)
            handle.shutdown()
        except Exception as e:  # pylint: disable=broad-except
            failed.append(f"connection {connection}: {e}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        sys.exit("; ".join(failed))


def check(raw, flushed):
    with open(flushed, encoding="ascii") as file:
        least = [int(word) for word in file.read().split()]
    with open(raw, "rb") as file:
        disk = file.read()
    for connection in range(CONNECTIONS):
        found = {}
        for cell in range(CELLS):
            start = place(connection, cell)
            block = disk[start : start + CELL]
            owner, number = struct.unpack("<QQ", block[:16])
            if block == bytes(CELL):
                number = 0
            elif owner != connection + 1 or block != content(connection, number) or number % CELLS != cell:
                sys.exit(f"cell {cell} of connection {connection} holds {block[:32].hex()}")
            found[cell] = number
        newest = max(found.values())
        for cell, number in found.items():
            back = (newest - cell) % CELLS
            want = max(newest - back, 0)
            if number != want:
                sys.exit(f"connection {connection} had written {newest}, and cell {cell} holds {number} instead of {want}")
        if newest < least[connection]:
            sys.exit(f"connection {connection} had flushed {least[connection]}, and the newest is {newest}")


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1]](*sys.argv[2:])
