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

void say(const char *before, const char *text, size_t size) {
    char line[8192];
    size_t used = (size_t)snprintf(line, sizeof line, "%s", before);
    for (size_t at = 0; at < size && used < sizeof line - 8; at++) {
        unsigned char c = (unsigned char)text[at];
        /* U+0080 to U+009F act on terminals too */
        bool c1 = c == 0xc2 && at + 1 < size && (unsigned char)text[at + 1] < 0xa0;
        if (c == '\n' && at + 1 == size)
            break;
        if (c < 0x20 || c == 0x7f || c1)
            used += (size_t)snprintf(line + used, 8, "\\x%02x", c1 ? (unsigned char)text[++at] : c);
        else
            line[used++] = (char)c;
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
