/* A wall clock that is wrong. Loaded into a worker before the C library (LD_PRELOAD).
 *
 * Who asks for the time is told the right one plus an offset, in nanoseconds: a 64-bit number in the file that STREAMSHIELD_CLOCK_OFFSET
 * names, mapped, so that a jump takes effect at once. Who waits until a time of the wall clock has computed it from what it was told; there the
 * offset is taken off again. Times of the monotonic clock are left alone; a wait until one is recognized by its being small.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define NANOS 1000000000LL
/* September 2001: no machine has been running for so long. */
#define WALL_SECONDS_MIN 1000000000LL

static int64_t none = 0;
static volatile int64_t *offset = &none;

__attribute__((constructor)) static void map_offset(void) {
  const char *path = getenv("STREAMSHIELD_CLOCK_OFFSET");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *mapped = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
  if (mapped != MAP_FAILED) offset = mapped;
  close(file);
}

static void add(struct timespec *time, int64_t nanos) {
  int64_t sum = (int64_t)time->tv_sec * NANOS + time->tv_nsec + nanos;
  time->tv_sec = sum / NANOS;
  time->tv_nsec = sum % NANOS;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
  static int (*next)(clockid_t, struct timespec *);
  if (!next) *(void **)&next = dlsym(RTLD_NEXT, "clock_gettime");
  int result = next ? next(clock, time) : (int)syscall(SYS_clock_gettime, clock, time);
  if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) add(time, *offset);
  return result;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
  struct timespec now;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &now);
  time->tv_sec = now.tv_sec;
  time->tv_usec = now.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *into) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (into) *into = now.tv_sec;
  return now.tv_sec;
}

int timespec_get(struct timespec *time, int base) {
  return base == TIME_UTC && clock_gettime(CLOCK_REALTIME, time) == 0 ? base : 0;
}

static struct timespec right(const struct timespec *until) {
  struct timespec time = *until;
  if (time.tv_sec > WALL_SECONDS_MIN) add(&time, -*offset);
  return time;
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex, const struct timespec *restrict until) {
  static int (*next)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
  /* The version of today's condition variables; x86-64 has an older one, too. */
  if (!next) *(void **)&next = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
  if (!next) *(void **)&next = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
  struct timespec time = right(until);
  return next(condition, mutex, &time);
}

int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex, const struct timespec *restrict until) {
  static int (*next)(cnd_t *, mtx_t *, const struct timespec *);
  if (!next) *(void **)&next = dlsym(RTLD_NEXT, "cnd_timedwait");
  struct timespec time = right(until);
  return next(condition, mutex, &time);
}
