/* The ring between the engine's threads and Python.
 *
 * A lock guards it: it is held for the time of a copy, two threads write and one reads. A record
 * that does not fit waits (BLOCK: the traced process waits with it, and nothing is lost), or is
 * counted (DROP), or ends the session (HALT). Calls are dropped before what says who was there and
 * how it ended. What was lost is told by a LOST record as soon as there is room again; its own room
 * is kept free for it. What lets a call go on may do so under that lock (ring_put_after): whatever the
 * call sets going is told behind it then, by either thread. */
#include "engine.h"
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

enum { LOST_ROOM = LOSSES * sizeof(struct head) };

int ring_make(struct ring *ring, size_t size, enum policy policy)
{
    ring->bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (ring->bytes == MAP_FAILED) {
        ring->bytes = NULL;
        return errno;
    }
    ring->size = size;
    ring->policy = policy;
    ring->open = true;
    ring->urgent = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    ring->soft = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (ring->urgent < 0 || ring->soft < 0)
        return errno;
    pthread_mutex_init(&ring->lock, NULL);
    pthread_cond_init(&ring->space, NULL);
    return 0;
}

static void ring_bell(int fd, bool *told)
{
    if (*told)
        return;
    *told = true;
    uint64_t one = 1;
    /* fails only where the counter is full, and then it is readable all the same */
    ssize_t done = write(fd, &one, sizeof one);
    (void)done;
}

static void copy_in(struct ring *ring, const void *bytes, size_t length)
{
    size_t at = ring->head & (ring->size - 1);
    size_t first = ring->size - at < length ? ring->size - at : length;
    memcpy(ring->bytes + at, bytes, first);
    memcpy(ring->bytes, (const unsigned char *)bytes + first, length - first);
    ring->head += length;
}

static size_t room(const struct ring *ring)
{
    return ring->size - (ring->head - ring->tail);
}

/* What a record leaves free: notes of losses, and processes where calls are lost already. */
static size_t room_behind(const struct ring *ring, struct record *record)
{
    bool call = record_head(record)->kind == CALL;
    return LOST_ROOM + (call && ring->policy != BLOCK ? ring->size / 8 : 0);
}

static void tell_losses(struct ring *ring)
{
    for (int why = 0; why < LOSSES; why++) {
        if (!ring->untold[why] || room(ring) < sizeof(struct head))
            continue;
        struct head head = {
            .size = sizeof head, .kind = LOST, .nr = why, .time_ns = now_ns(),
            .result = (int64_t)ring->untold[why],
        };
        copy_in(ring, &head, sizeof head);
        ring->untold[why] = 0;
    }
}

static void lose(struct ring *ring, enum loss why)
{
    ring->lost[why]++;
    ring->untold[why]++;
    if (why == LOST_ENDED)
        return;
    ring->halted |= ring->policy == HALT;
    ring_bell(ring->urgent, &ring->urgent_told); /* whoever halts, or counts, is not to wait */
}

void ring_lose(struct ring *ring, enum loss why)
{
    pthread_mutex_lock(&ring->lock);
    lose(ring, why);
    pthread_mutex_unlock(&ring->lock);
}

bool ring_put(struct ring *ring, struct record *record)
{
    return ring_put_after(ring, record, NULL, NULL);
}

bool ring_put_after(struct ring *ring, struct record *record, bool (*happens)(void *), void *given)
{
    bool done = false;
    pthread_mutex_lock(&ring->lock);
    size_t length = record->length;
    record_head(record)->size = length;
    size_t needed = length + room_behind(ring, record);
    bool whole = !record->failed && needed <= ring->size;
    while (whole && ring->open && ring->policy == BLOCK && room(ring) < needed) {
        ring_bell(ring->urgent, &ring->urgent_told);
        pthread_cond_wait(&ring->space, &ring->lock);
    }
    if (happens && !happens(given))
        goto out;
    if (!whole) {
        lose(ring, LOST_MEMORY);
        goto out;
    }
    if (!ring->open) {
        lose(ring, LOST_ENDED);
        goto out;
    }
    if (room(ring) < needed) {
        lose(ring, LOST_FULL);
        goto out;
    }
    if (ring->untold[LOST_FULL] || ring->untold[LOST_MEMORY])
        tell_losses(ring);
    if (room(ring) < length) { /* the losses took it */
        lose(ring, LOST_FULL);
        goto out;
    }
    copy_in(ring, record->bytes, length);
    done = true;
    ring_bell(ring->soft, &ring->soft_told);
    if (ring->head - ring->tail > ring->size / 4)
        ring_bell(ring->urgent, &ring->urgent_told);
out:
    pthread_mutex_unlock(&ring->lock);
    return done;
}

static void quiet(int fd, bool *told)
{
    uint64_t count;
    ssize_t done = read(fd, &count, sizeof count); /* EAGAIN where nobody rang */
    (void)done;
    *told = false;
}

bool ring_empty(struct ring *ring)
{
    pthread_mutex_lock(&ring->lock);
    bool empty = ring->head == ring->tail;
    for (int why = 0; why < LOSSES; why++)
        empty = empty && !ring->untold[why];
    pthread_mutex_unlock(&ring->lock);
    return empty;
}

size_t ring_ready(struct ring *ring)
{
    pthread_mutex_lock(&ring->lock);
    if (ring->head == ring->tail)
        tell_losses(ring);
    size_t ready = ring->head - ring->tail;
    pthread_mutex_unlock(&ring->lock);
    return ready;
}

void ring_take(struct ring *ring, unsigned char *into, size_t ready)
{
    pthread_mutex_lock(&ring->lock);
    size_t at = ring->tail & (ring->size - 1);
    size_t first = ring->size - at < ready ? ring->size - at : ready;
    memcpy(into, ring->bytes + at, first);
    memcpy(into + first, ring->bytes, ready - first);
    ring->tail += ready;
    tell_losses(ring); /* these are taken next */
    if (ring->tail == ring->head) {
        quiet(ring->soft, &ring->soft_told);
        quiet(ring->urgent, &ring->urgent_told);
    }
    pthread_cond_broadcast(&ring->space);
    pthread_mutex_unlock(&ring->lock);
}

void ring_call(struct ring *ring)
{
    pthread_mutex_lock(&ring->lock);
    ring_bell(ring->urgent, &ring->urgent_told);
    pthread_mutex_unlock(&ring->lock);
}

void ring_shut(struct ring *ring)
{
    pthread_mutex_lock(&ring->lock);
    ring->open = false;
    pthread_cond_broadcast(&ring->space);
    pthread_mutex_unlock(&ring->lock);
}

void ring_free(struct ring *ring)
{
    if (!ring->bytes)
        return;
    munmap(ring->bytes, ring->size);
    ring->bytes = NULL;
    if (ring->urgent >= 0)
        close(ring->urgent);
    if (ring->soft >= 0)
        close(ring->soft);
    pthread_mutex_destroy(&ring->lock);
    pthread_cond_destroy(&ring->space);
}
