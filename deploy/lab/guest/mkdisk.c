/* mkdisk FILE DISK SIZE FILL SCRIBBLE SEED RATE PERIOD_MS SLOTS: one raw, sparse guest disk.
 * The same arguments give the same bytes. Exit 0; 1 with a sentence on stderr. */
#define _GNU_SOURCE
#include "layout.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define CHUNK (1u << 20)

static void put(int fd, const void *bytes, size_t length, uint64_t offset)
{
    if (pwrite(fd, bytes, length, (off_t)offset) != (ssize_t)length) {
        perror("mkdisk: write");
        exit(1);
    }
}

int main(int argc, char **argv)
{
    if (argc != 10) {
        fprintf(stderr, "mkdisk: wants 9 arguments\n");
        return 1;
    }
    struct layout l = {.magic = LAYOUT_MAGIC};
    l.disk = strtoull(argv[2], 0, 10);
    l.size_bytes = strtoull(argv[3], 0, 10);
    l.fill_bytes = strtoull(argv[4], 0, 10);
    l.scribble_bytes = strtoull(argv[5], 0, 10);
    l.fill_seed = strtoull(argv[6], 0, 10);
    l.rate_bytes_per_s = strtoull(argv[7], 0, 10);
    l.period_ms = strtoull(argv[8], 0, 10);
    l.ring_slots = strtoull(argv[9], 0, 10);
    l.fill_offset = (RING_OFFSET + l.ring_slots * SECTOR + CHUNK - 1) / CHUNK * CHUNK;
    l.scribble_offset = l.fill_offset + l.fill_bytes;
    if (l.scribble_offset + l.scribble_bytes > l.size_bytes || l.fill_bytes % CHUNK) {
        fprintf(stderr, "mkdisk: fill and scribble do not fit, or fill is not whole MiB\n");
        return 1;
    }
    l.check = check_of(&l, sizeof l / 8 - 1);
    int fd = open(argv[1], O_CREAT | O_TRUNC | O_WRONLY, 0644);
    if (fd < 0 || ftruncate(fd, (off_t)l.size_bytes)) {
        perror("mkdisk: open");
        return 1;
    }
    put(fd, &l, sizeof l, LAYOUT_OFFSET);
    static uint64_t chunk[CHUNK / 8];
    for (uint64_t at = 0; at < l.fill_bytes; at += CHUNK) {
        for (unsigned b = 0; b < CHUNK / BLOCK; b++)
            fill_block(chunk + b * (BLOCK / 8), &l, at / BLOCK + b);
        put(fd, chunk, CHUNK, l.fill_offset + at);
    }
    return close(fd) ? 1 : 0;
}
