/* A preloaded library: records the calls on the files below one directory, and makes one of them fail.

   One shared page holds what all processes of a run share: the lock that puts their calls in one order, the count of
   calls, the fault, and the record. Processes that are forked from the one that loaded this library share it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { OPEN = 1, READ, WRITE, SYNC, TRUNCATE, UNLINK, RENAME, MKDIR, BEGIN, END };
enum { NONE, EIO_ONCE, ENOSPC_ONCE, SHORT, KILL, TORN, SYNCS_FAIL };

#define LOG_BYTES ((uint64_t)256 << 20)
#define MOST_FDS 4096

typedef struct {
    uint32_t bytes; /* of the data that follow, without padding */
    uint32_t operation;
    int64_t handle; /* of the open file; of markers, the number of the call */
    int64_t offset; /* of writes and reads; the new size; the flags of an open */
    int64_t result;
    uint32_t counted; /* the index of the call, from 1 */
    uint32_t faulted;
} record;

typedef struct {
    pthread_mutex_t lock;
    char directory[PATH_MAX];
    uint32_t active, count, target, fault, fired, death; /* death: the index at which a process dies besides */
    int64_t handles, short_handle;
    uint64_t used;
    char log[LOG_BYTES];
} shared_page;

static shared_page *page;
static int64_t handles[MOST_FDS]; /* by descriptor; 0: not watched */
static __thread int depth;

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void start(void) {
    page = mmap(NULL, sizeof *page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (page == MAP_FAILED) { page = NULL; return; }
    pthread_mutexattr_t kind;
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&page->lock, &kind);
}

static void lock(void) {
    if (pthread_mutex_lock(&page->lock) == EOWNERDEAD) pthread_mutex_consistent(&page->lock);
    depth++;
}

static void unlock(void) { depth--; pthread_mutex_unlock(&page->lock); }

static void note(int operation, int64_t handle, int64_t offset, int64_t result, const void *data, uint64_t bytes,
                 uint32_t faulted) {
    uint64_t size = sizeof(record) + ((bytes + 7) & ~(uint64_t)7);
    if (page->used + size > LOG_BYTES) { fprintf(stderr, "the record of the disk is full\n"); _exit(99); }
    record entry = {bytes, operation, handle, offset, result, page->count, faulted};
    memcpy(page->log + page->used, &entry, sizeof entry);
    memcpy(page->log + page->used + sizeof entry, data, bytes);
    page->used += size;
}

/* Called with the lock. Returns the fault of this call; kills the process if that is its fault. */
static int next_fault(int operation) {
    page->count++;
    if (page->death && page->count == page->death) {
        unlock();
        kill(getpid(), SIGKILL);
    }
    if (page->fault == NONE || page->count < page->target) return NONE;
    if (page->fault == SYNCS_FAIL) {
        if (operation != SYNC) return NONE;
        page->fired = 1;
        return EIO_ONCE;
    }
    if (page->count != page->target) return NONE;
    page->fired = 1;
    if (page->fault == KILL || (page->fault == TORN && operation != WRITE)) {
        unlock();
        kill(getpid(), SIGKILL);
    }
    return page->fault;
}

static int error_of(int fault) {
    if (fault == EIO_ONCE) return EIO;
    if (fault == ENOSPC_ONCE) return ENOSPC;
    return 0;
}

/* The path below the watched directory, or NULL. */
static const char *below(int directory, const char *path, char *space) {
    if (!page || !page->active || depth || !path) return NULL;
    if (path[0] != '/') {
        char base[PATH_MAX];
        if (directory == AT_FDCWD) {
            if (!getcwd(base, sizeof base)) return NULL;
        } else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
            ssize_t length = readlink(link, base, sizeof base - 1);
            if (length < 0) return NULL;
            base[length] = 0;
        }
        if (snprintf(space, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return NULL;
        path = space;
    }
    size_t length = strlen(page->directory);
    if (strncmp(path, page->directory, length) || (path[length] && path[length] != '/')) return NULL;
    return path[length] ? path + length + 1 : path + length;
}

static int64_t handle_of(int fd) {
    return page && page->active && !depth && fd >= 0 && fd < MOST_FDS ? handles[fd] : 0;
}

static int opened(int directory, const char *path, int flags, mode_t mode) {
    REAL(openat64);
    char space[PATH_MAX];
    const char *name = below(directory, path, space);
    if (!name) return real(directory, path, flags, mode);
    lock();
    int fault = next_fault(OPEN), error = error_of(fault), fd = -1;
    if (error == ENOSPC && !(flags & O_CREAT)) error = 0;
    if (!error) {
        fd = real(directory, path, flags, mode);
        error = fd < 0 ? errno : 0;
    }
    int64_t handle = fd < 0 ? 0 : ++page->handles;
    if (fd >= 0 && fd < MOST_FDS) handles[fd] = handle;
    note(OPEN, handle, flags, fd < 0 ? -error : 0, name, strlen(name), fault);
    unlock();
    errno = error;
    return fd;
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, int); va_end(rest); }

int open(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int openat(int directory, const char *path, int flags, ...) { MODE(flags) return opened(directory, path, flags, mode); }
int openat64(int directory, const char *path, int flags, ...) { MODE(flags) return opened(directory, path, flags, mode); }

int close(int fd) {
    REAL(close);
    if (fd >= 0 && fd < MOST_FDS) handles[fd] = 0;
    return real(fd);
}

static ssize_t was_written(int fd, const void *data, size_t bytes, off64_t offset, int at_offset) {
    REAL(pwrite64);
    static ssize_t (*real_write)(int, const void *, size_t);
    if (!real_write) real_write = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    int64_t handle = handle_of(fd);
    if (!handle) return at_offset ? real(fd, data, bytes, offset) : real_write(fd, data, bytes);
    lock();
    if (!at_offset) offset = lseek64(fd, 0, fcntl(fd, F_GETFL) & O_APPEND ? SEEK_END : SEEK_CUR);
    int fault = next_fault(WRITE), error = error_of(fault);
    size_t wanted = bytes;
    if (fault == SHORT || fault == TORN) wanted = bytes / 2;
    /* After a short write comes the reason: the disk is full. SQLite writes the rest at once. */
    if (page->short_handle == handle) { error = ENOSPC; fault = ENOSPC_ONCE; page->short_handle = 0; }
    ssize_t written = -1;
    if (!error) {
        written = at_offset ? real(fd, data, wanted, offset) : real_write(fd, data, wanted);
        error = written < 0 ? errno : 0;
    }
    if (fault == SHORT) page->short_handle = handle;
    note(WRITE, handle, offset, written < 0 ? -error : written, data, written < 0 ? 0 : written, fault);
    unlock();
    if (fault == TORN) kill(getpid(), SIGKILL);
    errno = error;
    return written;
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t offset) { return was_written(fd, data, bytes, offset, 1); }
ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset) { return was_written(fd, data, bytes, offset, 1); }
ssize_t write(int fd, const void *data, size_t bytes) { return was_written(fd, data, bytes, 0, 0); }

static ssize_t was_read(int fd, void *data, size_t bytes, off64_t offset, int at_offset) {
    REAL(pread64);
    static ssize_t (*real_read)(int, void *, size_t);
    if (!real_read) real_read = (ssize_t (*)(int, void *, size_t))dlsym(RTLD_NEXT, "read");
    int64_t handle = handle_of(fd);
    if (!handle) return at_offset ? real(fd, data, bytes, offset) : real_read(fd, data, bytes);
    lock();
    int fault = next_fault(READ), error = fault == EIO_ONCE ? EIO : 0;
    if (fault == SHORT && bytes > 1) bytes /= 2;
    ssize_t got = -1;
    if (!error) {
        got = at_offset ? real(fd, data, bytes, offset) : real_read(fd, data, bytes);
        error = got < 0 ? errno : 0;
    }
    note(READ, handle, offset, got < 0 ? -error : got, NULL, 0, fault);
    unlock();
    errno = error;
    return got;
}

ssize_t pread64(int fd, void *data, size_t bytes, off64_t offset) { return was_read(fd, data, bytes, offset, 1); }
ssize_t pread(int fd, void *data, size_t bytes, off_t offset) { return was_read(fd, data, bytes, offset, 1); }
ssize_t read(int fd, void *data, size_t bytes) { return was_read(fd, data, bytes, 0, 0); }

static int counted(int operation, int64_t handle, int64_t offset, const char *name, int (*call)(void *), void *context) {
    lock();
    int fault = next_fault(operation), error = error_of(fault), result = -1;
    if (!error) {
        result = call(context);
        error = result < 0 ? errno : 0;
    }
    note(operation, handle, offset, result < 0 ? -error : 0, name, name ? strlen(name) : 0, fault);
    unlock();
    errno = error;
    return result;
}

static int sync_now(void *fd) { REAL(fsync); return real(*(int *)fd); }
static int flushed(int fd) {
    int64_t handle = handle_of(fd);
    return handle ? counted(SYNC, handle, 0, NULL, sync_now, &fd) : sync_now(&fd);
}
int fsync(int fd) { return flushed(fd); }
int fdatasync(int fd) { return flushed(fd); }

typedef struct { int fd; off64_t size; } truncation;
static int truncate_now(void *context) {
    REAL(ftruncate64);
    truncation *asked = context;
    return real(asked->fd, asked->size);
}
int ftruncate64(int fd, off64_t size) {
    int64_t handle = handle_of(fd);
    truncation asked = {fd, size};
    return handle ? counted(TRUNCATE, handle, size, NULL, truncate_now, &asked) : truncate_now(&asked);
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

typedef struct { int directory; const char *path; int flags; } named;
static int unlink_now(void *context) {
    REAL(unlinkat);
    named *asked = context;
    return real(asked->directory, asked->path, asked->flags);
}
int unlinkat(int directory, const char *path, int flags) {
    char space[PATH_MAX];
    const char *name = below(directory, path, space);
    named asked = {directory, path, flags};
    return name ? counted(UNLINK, 0, 0, name, unlink_now, &asked) : unlink_now(&asked);
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }

static int mkdir_now(void *context) {
    REAL(mkdir);
    named *asked = context;
    return real(asked->path, asked->flags);
}
int mkdir(const char *path, mode_t mode) {
    char space[PATH_MAX];
    const char *name = below(AT_FDCWD, path, space);
    named asked = {AT_FDCWD, path, mode};
    return name ? counted(MKDIR, 0, 0, name, mkdir_now, &asked) : mkdir_now(&asked);
}

/* From here on: what the harness calls. */

void disk_begin(const char *directory, uint32_t target, uint32_t fault, uint32_t death) {
    snprintf(page->directory, sizeof page->directory, "%s", directory);
    page->count = page->fired = 0;
    page->handles = page->short_handle = 0;
    page->used = 0;
    page->target = target;
    page->fault = fault;
    page->death = death;
    page->active = 1;
}

void disk_end(void) { page->active = 0; }
uint32_t disk_fired(void) { return page->fired; }
uint64_t disk_used(void) { return page->used; }
const char *disk_log(void) { return page->log; }
void disk_mark(uint32_t operation, int64_t number) { lock(); note(operation, number, 0, 0, NULL, 0, 0); unlock(); }
