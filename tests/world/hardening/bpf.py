"""A classic BPF machine for seccomp programs: what the kernel would answer, instruction by
instruction. Refuses what the kernel's checker refuses (unaligned loads, jumps past the end)."""

import struct


def decode(program):
    return [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]


def run(instructions, nr, arch, args=(0, 0, 0, 0, 0, 0)):
    """(the action word, the number of instructions it took)"""
    data = struct.pack("=IIQ6Q", nr, arch, 0, *args)
    accumulator = at = steps = 0
    while True:
        operation, if_true, if_false, k = instructions[at]
        at += 1
        steps += 1
        match operation:
            case 0x20:
                assert k % 4 == 0
                assert k + 4 <= len(data)
                (accumulator,) = struct.unpack_from("=I", data, k)
            case 0x54:
                accumulator &= k
            case 0x05:
                at += k
            case 0x15:
                at += if_true if accumulator == k else if_false
            case 0x25:
                at += if_true if accumulator > k else if_false
            case 0x35:
                at += if_true if accumulator >= k else if_false
            case 0x45:
                at += if_true if accumulator & k else if_false
            case 0x06:
                return k, steps
            case _:
                raise AssertionError(f"the kernel would refuse operation {operation:#x}")
