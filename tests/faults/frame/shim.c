/* Between a program and its C library: counts the calls that change files below a folder, and at a chosen one kills the
   process, or has the call fail, or from then on all calls; or has each take its time. For LD_PRELOAD. Of a write that kills,
   half is done before. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static char folder[PATH_MAX];
static atomic_long calls, at = -1;
static int fault, process, lasting, slow_us;

/* error: an errno, 0 to kill. lasts: from that call on. each_us: what each call takes longer. Counting begins anew, in this process
   alone. */
void fault_arm(const char *below, long call, int error, int lasts, int each_us) {
    strncpy(folder, below, sizeof folder - 1);
    fault = error, process = getpid(), lasting = lasts, slow_us = each_us, calls = 0, at = call;
}
long fault_calls(void) { return calls; }

static atomic_long readings = -1;
/* From now on the clock of the day is a day early and a day late in turn, in this process. */
void fault_clock(void) { process = getpid(), readings = 0; }
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (__typeof__(real))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (!failed && readings >= 0 && clock == CLOCK_REALTIME && process == getpid())
        now->tv_sec += atomic_fetch_add(&readings, 1) % 2 ? 86400 : -86400;
    return failed;
}

static int below(const char *path) {
    size_t length = strlen(folder);
    return at >= 0 && process == getpid() && !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}
static int below_of(int directory, const char *path) {
    char place[PATH_MAX], link[64];
    if (at < 0 || path[0] == '/' || directory == AT_FDCWD) return below(path);
    snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    ssize_t length = readlink(link, place, sizeof place - 1);
    return length > 0 && (place[length] = 0, below(place));
}
static int is_it(void) {
    long number = atomic_fetch_add(&calls, 1);
    if (slow_us) usleep(slow_us);
    return number == at || (lasting && number > at);
}
/* Whether this call is the one that fails, unless it is the one that kills. */
static int fails(int counts) {
    if (!counts || !is_it()) return 0;
    if (!fault) kill(getpid(), SIGKILL);
    errno = fault;
    return 1;
}
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
        if (fails((flags & (O_WRONLY | O_RDWR | O_CREAT)) && below(path))) return -1; \
        return REAL(name)(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
#define OPENAT(name) \
    int name(int directory, const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
        if (fails((flags & (O_WRONLY | O_RDWR | O_CREAT)) && below_of(directory, path))) return -1; \
        return REAL(name)(directory, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

#define WRITES(name, parameters, arguments, half) \
    ssize_t name parameters { \
        if (below_of(file, "") && is_it()) { \
            if (!fault) { half; kill(getpid(), SIGKILL); } \
            errno = fault; \
            return -1; \
        } \
        return REAL(name) arguments; \
    }
WRITES(write, (int file, const void *data, size_t size), (file, data, size), REAL(write)(file, data, size / 2))
WRITES(pwrite, (int file, const void *data, size_t size, off_t start), (file, data, size, start), REAL(pwrite)(file, data, size / 2, start))
WRITES(pwrite64, (int file, const void *data, size_t size, off64_t start), (file, data, size, start), REAL(pwrite64)(file, data, size / 2, start))
WRITES(writev, (int file, const struct iovec *pieces, int count), (file, pieces, count), REAL(writev)(file, pieces, count / 2))

#define CALL(name, parameters, arguments, counts) \
    int name parameters { return fails(counts) ? -1 : REAL(name) arguments; }
CALL(fsync, (int file), (file), below_of(file, ""))
CALL(fdatasync, (int file), (file), below_of(file, ""))
CALL(ftruncate, (int file, off_t size), (file, size), below_of(file, ""))
CALL(ftruncate64, (int file, off64_t size), (file, size), below_of(file, ""))
/* A full disk has room for what takes none. */
#define FREES(name, parameters, arguments, counts) \
    int name parameters { return fails(counts) && !(lasting && fault == ENOSPC) ? -1 : REAL(name) arguments; }
FREES(rename, (const char *from, const char *to), (from, to), below(to))
FREES(renameat, (int one, const char *from, int other, const char *to), (one, from, other, to), below_of(other, to))
FREES(unlink, (const char *path), (path), below(path))
FREES(unlinkat, (int directory, const char *path, int flags), (directory, path, flags), below_of(directory, path))
FREES(rmdir, (const char *path), (path), below(path))
CALL(mkdir, (const char *path, mode_t mode), (path, mode), below(path))
CALL(mkdirat, (int directory, const char *path, mode_t mode), (directory, path, mode), below_of(directory, path))
CALL(link, (const char *from, const char *to), (from, to), below(to))
CALL(linkat, (int one, const char *from, int other, const char *to, int flags), (one, from, other, to, flags), below_of(other, to))
