/* argv[2] processes or threads (argv[1]) that are there at once; each opens a file and waits for the
 * end. Ends with how many could not be made, at most 100. */
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int ends[2];

static void *live(void *unused)
{
    char byte;
    close(open("/dev/null", O_WRONLY));
    while (read(ends[0], &byte, 1) > 0)
        ;
    return unused;
}

int main(int argc, char **argv)
{
    int many = argc > 2 ? atoi(argv[2]) : 100, missing = 0, threads = !strcmp(argv[1], "threads");
    pthread_t *all = calloc(many, sizeof *all);
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 65536);
    if (pipe(ends))
        return 101;
    for (int i = 0; i < many; i++) {
        if (threads) {
            missing += pthread_create(&all[i], &small, live, NULL) != 0;
            continue;
        }
        pid_t pid = fork();
        missing += pid < 0;
        if (!pid) {
            close(ends[1]);
            live(NULL);
            _exit(0);
        }
    }
    close(ends[1]);
    for (int i = 0; threads && !missing && i < many; i++)
        pthread_join(all[i], NULL);
    while (!threads && wait(NULL) > 0)
        ;
    return missing > 100 ? 100 : missing;
}
