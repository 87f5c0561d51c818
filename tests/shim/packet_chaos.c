/* Throws random and mutated bytes at what the stub reads of others, for so many seconds: run by
 * scripts/fuzz-stub with sanitizers. argv: seconds, seed. Each input is copied to memory of just its size, so
 * that a byte read too far is seen. Prints how many there were. */
#include "../../shim/c/stub.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static uint64_t state;

static uint32_t next(uint32_t below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 33) % below;
}

static const char *const JSON[] = {
    "{\"signal\":9}", "{\"a\":{\"signal\":1},\"signal\":15}", "{\"terminal\":true}", "{\"a\":\"\\\"\",\"b\":[1,{\"c\":2}]}",
    "{ \"bypass\" : \"recorded\" }", "{}", "[]", "\"", "{\"", "{\"a\":", "\\", ",", "}", ":",
};
static const char *const TEXT[] = {
    "spn_01920000-0000-7000-8000-0123456789ab", "126", "substrate: denied", "\xc2\x9b", "\xe2\x82\xac", "\xf0\x9f", "\x1b[2J",
};

static size_t make(unsigned char *bytes, size_t room) {
    size_t used = 1;
    bytes[0] = (unsigned char)"ATEDFSJXK"[next(9)];
    for (uint32_t fields = next(10); fields > 0 && used + 600 < room; fields--) {
        unsigned char field[512];
        uint32_t size = 0, length;
        switch (next(4)) {
        case 0:
            size = next(64);
            for (uint32_t at = 0; at < size; at++)
                field[at] = (unsigned char)next(256);
            break;
        case 1:
            size = (uint32_t)snprintf((char *)field, sizeof field, "%s", TEXT[next(sizeof TEXT / sizeof *TEXT)]);
            break;
        default:
            for (uint32_t parts = next(5); parts > 0 && size + 64 < sizeof field; parts--)
                size += (uint32_t)snprintf((char *)field + size, 64, "%s", JSON[next(sizeof JSON / sizeof *JSON)]);
        }
        length = size;
        memcpy(bytes + used, &length, sizeof length);
        memcpy(bytes + used + sizeof length, field, size);
        used += sizeof length + size;
    }
    for (uint32_t flips = next(4); flips > 0; flips--) /* and then not quite that */
        bytes[next((uint32_t)used)] = (unsigned char)next(256);
    return next(3) == 0 ? next((uint32_t)used + 1) : used;
}

static void read_all(const unsigned char *bytes, size_t size) {
    struct packet packet;
    if (!packet_parse(bytes, size, &packet))
        return;
    for (unsigned at = 0; at < packet.count + 1; at++) {
        struct field field = packet_field(&packet, at);
        field_number(field, 255);
        json_number(field, "signal", 64);
        json_is(field, "terminal", "true");
        json_is(field, "bypass", "\"recorded\"");
        is_id("spn_", field.at, field.size);
        say("", field.at, field.size);
    }
    call_refused(&packet);
}

/* What stub.c has, whose main is not this one's. */
int call_refused(const struct packet *packet) {
    struct packing packing;
    unsigned char room[256];
    packing_begin(&packing, room, sizeof room, packet->kind);
    for (unsigned at = 0; at < packet->count; at++)
        packing_add(&packing, packet->fields[at].at, packet->fields[at].size);
    return packing.cut;
}

int main(int argc, char **argv) {
    static unsigned char bytes[8192];
    time_t until = time(NULL) + (argc > 1 ? atoi(argv[1]) : 10);
    unsigned long count = 0;
    state = 0x9e3779b97f4a7c15u ^ (argc > 2 ? strtoull(argv[2], NULL, 10) : 1);
    if (freopen("/dev/null", "w", stderr) == NULL)
        return 1;
    while (time(NULL) < until)
        for (int more = 0; more < 10000; more++, count++) {
            size_t size = make(bytes, sizeof bytes);
            unsigned char *exact = malloc(size + (size == 0));
            if (exact == NULL)
                return 1;
            memcpy(exact, bytes, size);
            read_all(exact, size);
            free(exact);
        }
    printf("%lu packets\n", count);
    return 0;
}
