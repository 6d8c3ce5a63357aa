/* Preloaded, it makes one system call fail: the n-th open, write, fsync, rename, unlink or mkdir that concerns
 * a directory. Tests arm it through fault_arm and ask fault_count how many there were. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NONE, FAIL, SHORT };
static char below[4096], last[64];
static int mode = NONE, number, at, count, watched[4096];

void fault_arm(const char *directory, int mode_, int number_, int at_)
{
    snprintf(below, sizeof below, "%s", directory);
    mode = mode_, number = number_, at = at_, count = 0, last[0] = 0;
}

int fault_count(void) { return count; }
const char *fault_hit(void) { return last; }

static int concerns(const char *path) { return below[0] && strncmp(path, below, strlen(below)) == 0; }
static int concerned(int fd) { return below[0] && fd >= 0 && fd < 4096 && watched[fd]; }

/* Whether this call, of those that concern the directory, is the one to fail. */
static int hit(const char *call)
{
    if (mode == SHORT && strcmp(call, "write"))
        return 0;
    if (++count != at || mode == NONE)
        return 0;
    snprintf(last, sizeof last, "%s", call);
    errno = number;
    return 1;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define OPEN(name)                                                      \
    int name(const char *path, int flags, ...)                          \
    {                                                                   \
        REAL(name);                                                     \
        va_list rest;                                                   \
        va_start(rest, flags);                                          \
        mode_t permissions = va_arg(rest, mode_t);                      \
        va_end(rest);                                                   \
        if (concerns(path) && hit("open") && mode == FAIL)              \
            return -1;                                                  \
        int fd = real(path, flags, permissions);                        \
        if (fd >= 0 && fd < 4096)                                       \
            watched[fd] = concerns(path);                               \
        return fd;                                                      \
    }
OPEN(open)
OPEN(open64)

ssize_t write(int fd, const void *bytes, size_t size)
{
    REAL(write);
    if (concerned(fd) && hit("write")) {
        if (mode == FAIL)
            return -1;
        size = (size + 1) / 2; /* what a disk does that is nearly full: no error, and not all of it */
    }
    return real(fd, bytes, size);
}

int fsync(int fd)
{
    REAL(fsync);
    return concerned(fd) && hit("fsync") && mode == FAIL ? -1 : real(fd);
}

int rename(const char *from, const char *to)
{
    REAL(rename);
    return concerns(to) && hit("rename") && mode == FAIL ? -1 : real(from, to);
}

int unlink(const char *path)
{
    REAL(unlink);
    return concerns(path) && hit("unlink") && mode == FAIL ? -1 : real(path);
}

int mkdir(const char *path, mode_t permissions)
{
    REAL(mkdir);
    return concerns(path) && hit("mkdir") && mode == FAIL ? -1 : real(path, permissions);
}

int close(int fd)
{
    REAL(close);
    if (fd >= 0 && fd < 4096)
        watched[fd] = 0;
    return real(fd);
}
