/* Some processes, each of which makes a child and ends, for ever: whoever kills all that it knows of
 * kills yesterday's. argv[1]: how many hop at once; argv[2]: seconds, after which they stop. */
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    time_t until = time(NULL) + (argc > 2 ? atoi(argv[2]) : 30);
    int many = argc > 1 ? atoi(argv[1]) : 4;
    for (int i = 0; i < many; i++)
        if (fork() == 0)
            while (time(NULL) < until)
                if (fork() > 0)
                    _exit(0);
    while (wait(NULL) > 0)
        ;
    return 0;
}
