/* The reader's end of the kernel's BPF_MAP_TYPE_RINGBUF, as bpf_ring.py has it: whole records, in
 * order, without their heads of 8 bytes.
 *
 * The kernel stores a head without its busy bit behind the record's bytes, and the position of
 * writing behind a busy head, both with release; what we have read is given back with release.
 * Lengths are the kernel's: they are checked, and never believed. The memory of the data is mapped
 * twice in a row, so that no record is in two pieces. Source: kernel/bpf/ringbuf.c. */
#include "engine.h"
#include <stdatomic.h>
#include <string.h>

enum { HEAD = 8 };
static const uint32_t BUSY = 1u << 31, DISCARDED = 1u << 30;

static size_t step_of(uint32_t length)
{
    return ((size_t)(length & ~DISCARDED) + HEAD + 7) & ~(size_t)7;
}

enum bpf_ring_fault bpf_ring_look(const struct bpf_ring *ring, uint64_t most, struct bpf_ring_part *part)
{
    uint64_t at = part->from, written = __atomic_load_n(ring->written, __ATOMIC_ACQUIRE);
    *part = (struct bpf_ring_part){.from = at, .to = at, .written = written};
    if (written - at > ring->size)
        return RING_POSITION;
    while (part->to < written && part->to - at < most) {
        const unsigned char *head = ring->data + (part->to & (ring->size - 1));
        uint32_t length = __atomic_load_n((const uint32_t *)head, __ATOMIC_ACQUIRE);
        if (length & BUSY)
            break;
        if (!(length & DISCARDED)) {
            if (length > ring->longest)
                return RING_LENGTH;
            part->size += length;
        }
        if (step_of(length) > written - part->to)
            return RING_END;
        part->to += step_of(length);
    }
    return RING_GOOD;
}

bool bpf_ring_copy(const struct bpf_ring *ring, const struct bpf_ring_part *part, unsigned char *into)
{
    size_t left = part->size;
    for (uint64_t at = part->from; at < part->to;) {
        const unsigned char *head = ring->data + (at & (ring->size - 1));
        uint32_t length = __atomic_load_n((const uint32_t *)head, __ATOMIC_RELAXED);
        if (!(length & DISCARDED)) {
            if (length > left)
                return false; /* another one than was looked at */
            memcpy(into, head + HEAD, length);
            into += length;
            left -= length;
        }
        at += step_of(length);
    }
    if (left)
        return false;
    __atomic_store_n(ring->read, part->to, __ATOMIC_RELEASE);
    return true;
}
