/* Scripts: their first line as the kernel takes it apart (fs/binfmt_script.c), and whether what runs
 * is one. */
#include "engine.h"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static bool is_blank(char c)
{
    return c == ' ' || c == '\t';
}

/* The first that is not blank, or that is one or a NUL; NULL where there is none up to `last`. */
static char *skip_blanks(char *at, const char *last)
{
    while (at <= last && is_blank(*at))
        at++;
    return at <= last ? at : NULL;
}

static char *next_end(char *at, const char *last)
{
    while (at <= last && *at && !is_blank(*at))
        at++;
    return at <= last ? at : NULL;
}

/* False: it is no script, or one that the kernel refuses. */
static bool parse_first_line(struct first_line *line)
{
    char *text = line->text, *last = text + LINE_OF_SCRIPT - 1;
    line->interpreter = line->argument = NULL;
    if (text[0] != '#' || text[1] != '!')
        return false;
    char *end = memchr(text, '\n', strnlen(text, LINE_OF_SCRIPT));
    if (!end) {
        end = skip_blanks(text + 2, last);
        if (!end || !next_end(end, last))
            return false; /* the name may be longer */
        end = last;
    }
    while (is_blank(end[-1]))
        end--;
    char *name = skip_blanks(text + 2, end);
    if (!name || name == end)
        return false;
    char *gap = next_end(name, end);
    char *argument = gap && *gap ? skip_blanks(gap, end) : NULL;
    *end = 0;
    if (argument)
        *gap = 0;
    line->interpreter = name;
    line->argument = argument;
    return *name != 0;
}

int read_first_line(int target, struct first_line *line)
{
    char path[64];
    memset(line, 0, sizeof *line);
    snprintf(path, sizeof path, "/proc/self/fd/%d", target);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) /* it may be run and not be read: then the kernel reads it, and we compare */
        return errno == EACCES || errno == EPERM ? 0 : -1;
    ssize_t got = pread(fd, line->text, LINE_OF_SCRIPT, 0);
    int number = errno;
    close(fd);
    errno = number;
    return got < 0 ? -1 : parse_first_line(line);
}

bool runs_script(pid_t tid, struct record *record, const struct image *image)
{
    if (record->failed || !image->name_known || !image->argv_known)
        return false;
    /* for a script the kernel puts its name behind the interpreter, and perhaps one argument: a
     * name that does not stand there is none, and nearly all end here */
    const unsigned char *name = record->bytes + image->name_at,
                        *words = record->bytes + image->argv_at;
    size_t at = 0;
    bool stands = false;
    for (int word = 0; word <= 2 * MOST_INTERPRETERS && at < image->argv_length; word++) {
        const unsigned char *end = memchr(words + at, 0, image->argv_length - at);
        if (!end)
            break;
        size_t size = end - (words + at);
        stands |= word && size == image->name_length && !memcmp(words + at, name, size);
        at += size + 1;
    }
    if (!stands)
        return false;
    char path[64];
    struct file_status named, runs;
    snprintf(path, sizeof path, "/proc/%d/exe", (int)tid);
    int file = open_target(tid, AT_THE_CWD, name, image->name_length, true);
    if (file < 0)
        return true; /* a name of a descriptor that is closed by now: a script's */
    bool other = read_file_status(file, "", &named) && read_file_status(AT_FDCWD, path, &runs) &&
                 (named.dev != runs.dev || named.ino != runs.ino);
    close(file);
    if (other)
        describe_file(record, &named);
    return other;
}
