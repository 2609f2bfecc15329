/*
 * numbered DEVICE PORT FIRST SLOTS fsync|dsync|direct
 *
 * Writes numbered blocks of 4096 bytes, from FIRST on, each to its place (the number modulo SLOTS), all eight-byte words of it its
 * number; makes each safe (fsync), or relies on the write itself (dsync: O_DSYNC; direct: O_DIRECT alone); then tells the host the
 * number by vsock, in eight bytes. Goes on until the host does not listen any more.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>

#define BLOCK 4096

static uint64_t block[BLOCK / 8] __attribute__((aligned(BLOCK)));

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

int main(int argc, char **argv)
{
	if (argc != 6)
		return 2;
	const char *how = argv[5];
	uint64_t number = strtoull(argv[3], NULL, 10), slots = strtoull(argv[4], NULL, 10);
	int flags = O_WRONLY;
	if (strcmp(how, "fsync"))
		flags |= O_DIRECT;
	if (!strcmp(how, "dsync"))
		flags |= O_DSYNC;
	int disk = open(argv[1], flags);
	if (disk < 0)
		fail("open");
	struct sockaddr_vm host = {
		.svm_family = AF_VSOCK,
		.svm_cid = VMADDR_CID_HOST,
		.svm_port = strtoul(argv[2], NULL, 10),
	};
	int reports = socket(AF_VSOCK, SOCK_STREAM, 0);
	if (reports < 0 || connect(reports, (struct sockaddr *)&host, sizeof(host)) < 0)
		fail("connect");
	for (;; number++) {
		for (int i = 0; i < BLOCK / 8; i++)
			block[i] = number;
		if (pwrite(disk, block, BLOCK, number % slots * BLOCK) != BLOCK)
			fail("pwrite");
		if (!strcmp(how, "fsync") && fsync(disk) < 0)
			fail("fsync");
		if (write(reports, &number, sizeof(number)) != sizeof(number))
			fail("write");
	}
}
