/* The bytes of the protocol: a packet is one byte of kind and fields, each a 32-bit length in native
 * order and its bytes. What is not exactly that is refused. The JSON that comes in fields is only ever
 * asked for one key of the outermost object. No other file reads bytes of others. */
#include "stub.h"

#include <string.h>

bool packet_parse(const unsigned char *bytes, size_t size, struct packet *into) {
    size_t at = 1;
    memset(into, 0, sizeof *into);
    if (size == 0 || size > PACKET_MOST)
        return false;
    into->kind = (char)bytes[0];
    while (at < size) {
        uint32_t length;
        if (size - at < sizeof length || into->count == FIELDS_MOST)
            return false;
        memcpy(&length, bytes + at, sizeof length);
        at += sizeof length;
        if (length > size - at)
            return false;
        into->fields[into->count].at = (const char *)bytes + at;
        into->fields[into->count++].size = length;
        at += length;
    }
    return true;
}

struct field packet_field(const struct packet *packet, unsigned index) {
    return index < packet->count ? packet->fields[index] : (struct field){"", 0};
}

void packing_begin(struct packing *packing, unsigned char *room, size_t size, char kind) {
    *packing = (struct packing){room, 1, size, false};
    room[0] = (unsigned char)kind;
}

void packing_add(struct packing *packing, const char *bytes, size_t size) {
    uint32_t length = (uint32_t)size;
    if (packing->cut || size > PACKET_MOST || packing->room - packing->size < sizeof length + size) {
        packing->cut = true;
        return;
    }
    memcpy(packing->at + packing->size, &length, sizeof length);
    memcpy(packing->at + packing->size + sizeof length, bytes, size);
    packing->size += sizeof length + size;
}

long field_number(struct field field, long most) {
    long value = 0;
    if (field.size == 0 || field.size > 9)
        return -1;
    for (size_t at = 0; at < field.size; at++) {
        if (field.at[at] < '0' || field.at[at] > '9')
            return -1;
        value = value * 10 + (field.at[at] - '0');
    }
    return value <= most ? value : -1;
}

static bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

static size_t after_space(struct field json, size_t at) {
    while (at < json.size && is_space(json.at[at]))
        at++;
    return at;
}

/* Behind the text that begins at `at`; json.size + 1 where it does not end. */
static size_t after_text(struct field json, size_t at) {
    for (at++; at < json.size; at++) {
        if (json.at[at] == '\\')
            at++;
        else if (json.at[at] == '"')
            return at + 1;
    }
    return json.size + 1;
}

/* The value of a key of the outermost object, as it is written; empty where there is none. Texts with
 * escapes are no key of ours. A list or an object as a value is passed over by its brackets. */
static struct field json_value(struct field json, const char *key) {
    const struct field none = {"", 0};
    size_t at = after_space(json, 0);
    if (at >= json.size || json.at[at] != '{')
        return none;
    at = after_space(json, at + 1);
    while (at < json.size && json.at[at] == '"') {
        size_t name = at + 1, end = after_text(json, at), depth = 0, begin;
        bool same;
        if (end > json.size)
            return none;
        same = end - 1 - name == strlen(key) && memcmp(json.at + name, key, strlen(key)) == 0;
        at = after_space(json, end);
        if (at >= json.size || json.at[at] != ':')
            return none;
        begin = at = after_space(json, at + 1);
        while (at < json.size) {
            char c = json.at[at];
            if (depth == 0 && (c == ',' || c == '}'))
                break;
            if (c == '"') {
                at = after_text(json, at);
                continue;
            }
            if (c == '{' || c == '[')
                depth++;
            if (c == '}' || c == ']') {
                if (depth == 0)
                    return none;
                depth--;
            }
            at++;
        }
        if (at >= json.size)
            return none;
        if (same) {
            size_t last = at;
            while (last > begin && is_space(json.at[last - 1]))
                last--;
            return (struct field){json.at + begin, last - begin};
        }
        if (json.at[at] == '}')
            return none;
        at = after_space(json, at + 1);
    }
    return none;
}

long json_number(struct field json, const char *key, long most) {
    return field_number(json_value(json, key), most);
}

bool json_is(struct field json, const char *key, const char *value) {
    struct field found = json_value(json, key);
    return found.size == strlen(value) && memcmp(found.at, value, found.size) == 0;
}

bool is_id(const char *prefix, const char *text, size_t size) {
    if (size != 40 || memcmp(text, prefix, 4) != 0 || text[18] != '7' || strchr("89ab", text[23]) == NULL)
        return false;
    for (size_t at = 4; at < size; at++) {
        bool hyphen = at == 12 || at == 17 || at == 22 || at == 27;
        bool digit = (text[at] >= '0' && text[at] <= '9') || (text[at] >= 'a' && text[at] <= 'f');
        if (hyphen ? text[at] != '-' : !digit)
            return false;
    }
    return true;
}
