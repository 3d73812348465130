/* The lab guest's only program: it is /init of the initramfs, pid 1.
 *
 * Record n (checksummed) goes to vda and is flushed, then to vdb and is flushed, then `COUNT n` is
 * printed. At each boot both rings are read back whole: `VERIFY nonce= first= last_vda= last_vdb=
 * bad=`. A second process writes random blocks in the background. Any error prints `WRITE-ERROR`,
 * any operation longer than 5 s prints `STALL`: the guest must never notice replication.
 * Commands on the second serial port, a line each: `rate BYTES_PER_S`, `check` (re-reads the
 * filling: `FILL disk= bad=`), `poweroff`. All I/O is O_DIRECT; no data lies in kernel, initramfs
 * or command line. */
#define _GNU_SOURCE
#include "layout.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/input.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define STALL_S 5
#define CHUNK (1u << 20)

struct shared { /* between the processes of the guest */
    volatile uint64_t rate_bytes_per_s, stop;
};

static struct shared *shared;
static struct layout layouts[2];
static int disks[2];
static uint64_t nonce;
static int console = 2;
static char doing[64];
static const char *names[] = {"vda", "vdb"};

static void say(const char *format, ...)
{
    char line[256];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line - 2, format, args);
    va_end(args);
    line[n++] = '\n';
    if (write(console, line, (size_t)n) < 0)
        return;
}

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void sleep_ms(uint64_t ms)
{
    struct timespec t = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
    nanosleep(&t, 0);
}

static void on_alarm(int signal)
{
    (void)signal;
    say("STALL %s still waits after %d s", doing, STALL_S);
}

static void halt(void)
{
    sync();
    reboot(RB_POWER_OFF);
    for (;;)
        pause();
}

/* Every operation on a disk goes through here, so that none fails or stalls unseen. */
static int timed(int disk, int writing, void *bytes, size_t length, uint64_t offset)
{
    snprintf(doing, sizeof doing, "%s %s at %llu", writing ? "write" : "read", names[disk],
             (unsigned long long)offset);
    uint64_t before = now_ms();
    alarm(STALL_S);
    ssize_t n = writing ? pwrite(disks[disk], bytes, length, (off_t)offset)
                        : pread(disks[disk], bytes, length, (off_t)offset);
    int error = n < 0 ? errno : 0;
    if (writing && n == (ssize_t)length && fsync(disks[disk])) {
        error = errno;
        n = -1;
    }
    alarm(0);
    uint64_t took = now_ms() - before;
    if (took > STALL_S * 1000)
        say("STALL %s took %llu ms", doing, (unsigned long long)took);
    if (n != (ssize_t)length) {
        say("%s %s: %zd of %zu, %s", writing ? "WRITE-ERROR" : "READ-ERROR", doing, n, length,
            strerror(error));
        return -1;
    }
    return 0;
}

static void load_module(const char *name)
{
    char path[80];
    snprintf(path, sizeof path, "/mod/%s.ko", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    if (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST)
        say("MODULE-ERROR %s: %s", name, strerror(errno));
    close(fd);
}

static void set_up(void)
{
    static const char *modules[] = {"virtio_ring", "virtio", "virtio_pci_legacy_dev",
                                    "virtio_pci_modern_dev", "virtio_pci", "virtio_blk",
                                    "button", "evdev"};
    mkdir("/dev", 0755);
    mkdir("/proc", 0755);
    mount("devtmpfs", "/dev", "devtmpfs", 0, "");
    mount("proc", "/proc", "proc", 0, "");
    int fd = open("/dev/ttyS0", O_WRONLY | O_NOCTTY);
    if (fd >= 0)
        console = fd;
    struct termios t;
    if (!tcgetattr(console, &t)) {
        t.c_oflag &= ~(tcflag_t)OPOST; /* lines end in \n alone */
        tcsetattr(console, TCSANOW, &t);
    }
    struct sigaction act = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &act, 0);
    for (unsigned i = 0; i < sizeof modules / sizeof *modules; i++)
        load_module(modules[i]);
    shared = mmap(0, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

static void *aligned(size_t bytes)
{
    void *p = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        say("NO-MEMORY");
        halt();
    }
    return p;
}

static void open_disks(void)
{
    void *sector = aligned(BLOCK);
    for (int d = 0; d < 2; d++) {
        char path[16];
        snprintf(path, sizeof path, "/dev/%s", names[d]);
        for (int i = 0; i < 100; i++) {
            disks[d] = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
            if (disks[d] >= 0)
                break;
            sleep_ms(20);
            if (d == 0 && i == 20)
                break;
        }
        if (disks[d] < 0) { /* also how the lab probes whether this kernel boots at all */
            say("NO-DISK %s", names[d]);
            halt();
        }
        timed(d, 0, sector, SECTOR, LAYOUT_OFFSET);
        memcpy(&layouts[d], sector, sizeof layouts[d]);
        if (layouts[d].magic != LAYOUT_MAGIC
            || layouts[d].check != check_of(&layouts[d], sizeof layouts[d] / 8 - 1)) {
            say("LAYOUT-BAD %s", names[d]);
            halt();
        }
    }
    munmap(sector, BLOCK);
}

/* The nonce is made at the first boot and kept on vda only. */
static int load_nonce(void)
{
    static const char zeros[SECTOR];
    char *sector = aligned(BLOCK);
    struct nonce *kept = (struct nonce *)sector;
    int bad = 0;
    timed(0, 0, sector, SECTOR, NONCE_OFFSET);
    if (!memcmp(sector, zeros, SECTOR)) {
        if (getrandom(&kept->nonce, 8, 0) != 8)
            kept->nonce = mix(now_ms());
        kept->magic = NONCE_MAGIC;
        kept->check = check_of(kept, 2);
        timed(0, 1, sector, SECTOR, NONCE_OFFSET);
    } else if (kept->magic != NONCE_MAGIC || kept->check != check_of(kept, 2)) {
        bad = 1;
    }
    nonce = kept->nonce;
    munmap(sector, BLOCK);
    return bad;
}

struct found {
    uint64_t first, last, bad;
};

/* Reads the whole ring. Slot s may hold only the newest record n with n % slots == s; a slot that
 * was never reached holds zeros. Everything else counts as bad. */
static struct found verify(int disk)
{
    struct layout *l = &layouts[disk];
    static const char zeros[SECTOR];
    struct found f = {0, 0, 0};
    struct record want;
    char *chunk = aligned(CHUNK);
    uint32_t *low = aligned((l->ring_slots * 4 + BLOCK) / BLOCK * BLOCK);
    for (uint64_t slot = 0; slot < l->ring_slots; slot++) {
        uint64_t in = slot * SECTOR % CHUNK;
        uint64_t left = l->ring_slots * SECTOR - slot * SECTOR;
        if (!in && timed(disk, 0, chunk, left < CHUNK ? left : CHUNK, RING_OFFSET + slot * SECTOR))
            f.bad++;
        struct record *r = (struct record *)(chunk + in);
        if (r->magic == 0 && !memcmp(r, zeros, SECTOR))
            continue;
        make_record(&want, nonce, r->n, (uint64_t)disk);
        if (r->n == 0 || r->n % l->ring_slots != slot || memcmp(r, &want, SECTOR)) {
            f.bad++;
            continue;
        }
        low[slot] = (uint32_t)r->n;
        if (r->n > f.last)
            f.last = r->n;
    }
    for (uint64_t slot = 0; slot < l->ring_slots; slot++) {
        uint64_t back = (f.last % l->ring_slots + l->ring_slots - slot) % l->ring_slots;
        uint64_t expected = back < f.last ? f.last - back : 0;
        if (low[slot] != (uint32_t)expected)
            f.bad++;
    }
    if (f.last)
        f.first = f.last >= l->ring_slots ? f.last - l->ring_slots + 1 : 1;
    munmap(chunk, CHUNK);
    munmap(low, (l->ring_slots * 4 + BLOCK) / BLOCK * BLOCK);
    return f;
}

static void check_fill(int disk)
{
    struct layout *l = &layouts[disk];
    uint64_t *chunk = aligned(CHUNK), want[BLOCK / 8], bad = 0;
    for (uint64_t at = 0; at < l->fill_bytes; at += CHUNK) {
        if (timed(disk, 0, chunk, CHUNK, l->fill_offset + at))
            bad++;
        for (unsigned b = 0; b < CHUNK / BLOCK; b++) {
            fill_block(want, l, at / BLOCK + b);
            bad += memcmp(want, chunk + b * (BLOCK / 8), BLOCK) != 0;
        }
    }
    say("FILL disk=%s blocks=%llu bad=%llu", names[disk],
        (unsigned long long)(l->fill_bytes / BLOCK), (unsigned long long)bad);
    munmap(chunk, CHUNK);
}

/* Background writes: 64 KiB of noise at random places, vda and vdb in turn. */
static void scribble(void)
{
    const unsigned size = 65536;
    uint64_t *block = aligned(size), seed = mix(nonce ^ now_ms()), written = 0;
    uint64_t since = now_ms(), rate = shared->rate_bytes_per_s;
    for (uint64_t turn = 0;; turn++) {
        if (shared->rate_bytes_per_s != rate) {
            rate = shared->rate_bytes_per_s;
            since = now_ms();
            written = 0;
        }
        int d = (int)(turn & 1);
        if (!rate || layouts[d].scribble_bytes < size) {
            sleep_ms(200);
            continue;
        }
        stream(block, size / 8, seed++);
        uint64_t places = layouts[d].scribble_bytes / size;
        timed(d, 1, block, size, layouts[d].scribble_offset + block[0] % places * size);
        written += size;
        uint64_t due = since + written * 1000 / rate, now = now_ms();
        if (due > now)
            sleep_ms(due - now);
        else if (now - due > 2000) { /* cannot keep up: no debt is carried on */
            since = now;
            written = 0;
        }
    }
}

static void obey(char *line)
{
    if (!strncmp(line, "rate ", 5)) {
        shared->rate_bytes_per_s = strtoull(line + 5, 0, 10);
        say("RATE %llu", (unsigned long long)shared->rate_bytes_per_s);
    } else if (!strcmp(line, "check")) {
        check_fill(0);
        check_fill(1);
    } else if (!strcmp(line, "poweroff")) {
        shared->stop = 1;
    } else if (*line) {
        say("UNKNOWN-COMMAND");
    }
}

static void listen_serial(void)
{
    char line[80];
    unsigned n = 0;
    /* Without O_NONBLOCK the open would wait for a carrier that a pty does not give. */
    int fd = open("/dev/ttyS1", O_RDONLY | O_NOCTTY | O_NONBLOCK);
    struct termios t;
    if (fd < 0)
        return;
    if (!tcgetattr(fd, &t)) {
        cfmakeraw(&t);
        t.c_cflag |= CLOCAL | CREAD;
        tcsetattr(fd, TCSANOW, &t);
    }
    fcntl(fd, F_SETFL, 0);
    for (char c;;) {
        if (read(fd, &c, 1) != 1) {
            sleep_ms(200);
        } else if (c == '\n' || c == '\r') {
            line[n] = 0;
            n = 0;
            obey(line);
        } else if (n < sizeof line - 1) {
            line[n++] = c;
        }
    }
}

/* The ACPI power button, as `virsh shutdown` presses it. */
static void listen_button(void)
{
    struct input_event event;
    int fds[8], n = 0;
    for (int i = 0; i < 8; i++) {
        char path[32];
        snprintf(path, sizeof path, "/dev/input/event%d", i);
        int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
        if (fd >= 0)
            fds[n++] = fd;
    }
    while (n) {
        for (int i = 0; i < n; i++)
            while (read(fds[i], &event, sizeof event) == (ssize_t)sizeof event)
                if (event.type == EV_KEY && event.code == KEY_POWER && event.value == 1)
                    shared->stop = 1;
        sleep_ms(200);
    }
}

static pid_t start(void (*work)(void))
{
    pid_t child = fork();
    if (!child) {
        work();
        _exit(0);
    }
    return child;
}

int main(void)
{
    set_up();
    open_disks();
    int bad_nonce = load_nonce();
    say("BOOT nonce=%016llx", (unsigned long long)nonce);
    struct found a = verify(0), b = verify(1);
    say("VERIFY nonce=%016llx first=%llu last_vda=%llu last_vdb=%llu bad=%llu",
        (unsigned long long)nonce, (unsigned long long)a.first, (unsigned long long)a.last,
        (unsigned long long)b.last, (unsigned long long)(a.bad + b.bad) + (unsigned)bad_nonce);
    shared->rate_bytes_per_s = layouts[0].rate_bytes_per_s;
    pid_t scribbler = start(scribble);
    start(listen_serial);
    start(listen_button);
    struct record *r = aligned(BLOCK);
    /* The smaller: vdb may lack the newest record of vda, which is then written again. */
    for (uint64_t n = (a.last < b.last ? a.last : b.last) + 1; !shared->stop; n++) {
        for (int d = 0; d < 2; d++) {
            make_record(r, nonce, n, (uint64_t)d);
            timed(d, 1, r, SECTOR, RING_OFFSET + n % layouts[d].ring_slots * SECTOR);
        }
        say("COUNT %llu", (unsigned long long)n);
        sleep_ms(layouts[0].period_ms);
    }
    kill(scribbler, SIGKILL); /* a write cut off by the power would look like an error */
    waitpid(scribbler, 0, 0);
    say("POWEROFF");
    halt();
}
