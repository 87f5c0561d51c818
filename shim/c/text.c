/* What is said on standard error: two lines, what went wrong and what to do. The form is that of
 * `substrate` itself (substrate/cli/messages.py), without colours. Saying something never fails. */
#include "stub.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

bool trouble_say(struct trouble *trouble, const char *hint, const char *format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(trouble->text, sizeof trouble->text, format, values);
    va_end(values);
    snprintf(trouble->hint, sizeof trouble->hint, "%s", hint);
    return false;
}

bool trouble_errno(struct trouble *trouble, const char *hint, const char *what) {
    return trouble_say(trouble, hint, "%s: %s", what, strerror(errno));
}

static void put(const char *bytes, size_t size) {
    while (size > 0) {
        ssize_t done = write(2, bytes, size);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return; /* nobody reads it */
        bytes += done;
        size -= (size_t)done;
    }
}

/* How many bytes the character at `text` has; 0 for what is not one or acts on terminals: control
 * characters, U+0080 to U+009F, what is not UTF-8. */
static size_t shown(const char *text, size_t size) {
    const unsigned char *at = (const unsigned char *)text;
    size_t length = at[0] < 0x80 ? 1 : at[0] < 0xc2 ? 0 : at[0] < 0xe0 ? 2 : at[0] < 0xf0 ? 3 : at[0] < 0xf5 ? 4 : 0;
    if (length == 0 || length > size || at[0] < 0x20 || at[0] == 0x7f)
        return 0;
    for (size_t next = 1; next < length; next++)
        if ((at[next] & 0xc0) != 0x80)
            return 0;
    return length == 2 && at[0] == 0xc2 && at[1] < 0xa0 ? 0 : length;
}

void say(const char *before, const char *text, size_t size) {
    char line[8192];
    size_t used = (size_t)snprintf(line, sizeof line, "%s", before);
    if (size > 0 && text[size - 1] == '\n')
        size--;
    for (size_t at = 0; at < size && used < sizeof line - 8;) {
        size_t length = shown(text + at, size - at);
        if (length == 0)
            used += (size_t)snprintf(line + used, 8, "\\x%02x", (unsigned char)text[at++]);
        for (; length > 0; length--)
            line[used++] = text[at++];
    }
    line[used++] = '\n';
    put(line, used);
}

void say_trouble(const char *name, const struct trouble *trouble) {
    char before[256];
    snprintf(before, sizeof before, "substrate: %.200s: ", name);
    say(before, trouble->text, strlen(trouble->text));
    if (trouble->hint[0] != '\0')
        say("hint: ", trouble->hint, strlen(trouble->hint));
}
