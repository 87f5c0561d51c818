/* Records in the making. Nothing here fails aloud: a record for which there is no memory is marked,
 * and ring_put counts it as lost. */
#include "engine.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>

static bool make_room(struct record *record, size_t more)
{
    if (record->failed)
        return false;
    if (record->room - record->length >= more)
        return true;
    size_t room = record->room ? record->room : 1024;
    while (room - record->length < more)
        room *= 2;
    unsigned char *bytes = realloc(record->bytes, room);
    if (!bytes) {
        record->failed = true;
        return false;
    }
    record->bytes = bytes;
    record->room = room;
    return true;
}

struct head *record_begin(struct record *record, enum kind kind, uint32_t tid)
{
    record->length = 0;
    record->failed = false;
    if (!make_room(record, sizeof(struct head))) {
        memset(&record->spare, 0, sizeof record->spare);
        return &record->spare;
    }
    record->length = sizeof(struct head);
    struct head *head = record_head(record);
    memset(head, 0, sizeof *head);
    head->kind = kind;
    head->tid = tid;
    head->time_ns = now_ns();
    return head;
}

struct head *record_head(struct record *record)
{
    return record->bytes ? (struct head *)record->bytes : &record->spare;
}

unsigned char *record_open(struct record *record, size_t most)
{
    if (!make_room(record, most + 16))
        return NULL;
    return record->bytes + record->length + 8;
}

void record_close(struct record *record, enum tag tag, unsigned more, size_t length)
{
    if (record->failed)
        return;
    unsigned char *at = record->bytes + record->length;
    uint16_t words[2] = {tag, more};
    uint32_t size = length;
    memcpy(at, words, 4);
    memcpy(at + 4, &size, 4);
    size_t padded = (length + 7) & ~(size_t)7;
    memset(at + 8 + length, 0, padded - length);
    record->length += 8 + padded;
}

void record_item(struct record *record, enum tag tag, unsigned more, const void *bytes, size_t length)
{
    unsigned char *at = record_open(record, length);
    if (!at)
        return;
    memcpy(at, bytes, length);
    record_close(record, tag, more, length);
}

void record_rest(struct record *record)
{
    if (record->room > KEPT_ROOM)
        record_free(record);
}

void record_free(struct record *record)
{
    free(record->bytes);
    memset(record, 0, sizeof *record);
}

uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + now.tv_nsec;
}
