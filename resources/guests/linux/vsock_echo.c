/*
 * vsock_echo listen PORT        accepts one connection and sends back what comes, until the other side has sent all
 * vsock_echo connect PORT LEN   connects to the host, sends LEN bytes of a pattern, reads as many back and compares
 * vsock_echo zerocopy PORT LEN  the same, and each packet is sent from where its pages lie
 * vsock_echo send PORT LEN      connects to the host, sends LEN bytes, and waits until it has closed the connection
 * vsock_echo receive PORT LEN   connects to the host, and reads until it has closed the connection, which must be LEN bytes
 * vsock_echo many PORT COUNT    opens that many connections to the host at once and says how many there were
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <linux/vm_sockets.h>

static char buffer[65536];

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int stream(void)
{
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (fd < 0)
		fail("socket");
	return fd;
}

static struct sockaddr_vm address(unsigned int cid, const char *port)
{
	struct sockaddr_vm address = {
		.svm_family = AF_VSOCK,
		.svm_cid = cid,
		.svm_port = strtoul(port, NULL, 10),
	};

	return address;
}

static void write_all(int fd, const char *bytes, size_t len)
{
	while (len > 0) {
		ssize_t count = write(fd, bytes, len);

		if (count <= 0)
			fail("write");
		bytes += count;
		len -= count;
	}
}

static void echo(const char *port)
{
	struct sockaddr_vm here = address(VMADDR_CID_ANY, port);
	int listener = stream(), fd;
	ssize_t count;

	if (bind(listener, (struct sockaddr *)&here, sizeof(here)) < 0)
		fail("bind");
	if (listen(listener, 1) < 0)
		fail("listen");
	puts("vsock listens");
	fflush(stdout);
	fd = accept(listener, NULL, NULL);
	if (fd < 0)
		fail("accept");
	while ((count = read(fd, buffer, sizeof(buffer))) > 0)
		write_all(fd, buffer, count);
	if (count < 0)
		fail("read");
	puts("vsock echoed");
}

static char pattern(size_t at)
{
	return at ^ at >> 8 ^ at >> 16;
}

/* The pages are the kernel's until it has sent them: each part has its own. */
static void send_pages(int fd, size_t len)
{
	size_t at, part;
	int on = 1;
	char *all = aligned_alloc(4096, len);

	if (!all || setsockopt(fd, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof(on)) < 0)
		fail("zerocopy");
	for (at = 0; at < len; at++)
		all[at] = pattern(at);
	for (at = 0; at < len; at += part) {
		part = len - at < sizeof(buffer) ? len - at : sizeof(buffer);
		ssize_t count = send(fd, all + at, part, MSG_ZEROCOPY);

		if (count <= 0)
			fail("send");
		part = count;
	}
}

static void send_copies(int fd, size_t len)
{
	size_t at, i, part;

	for (at = 0; at < len; at += part) {
		part = len - at < sizeof(buffer) ? len - at : sizeof(buffer);
		for (i = 0; i < part; i++)
			buffer[i] = pattern(at + i);
		write_all(fd, buffer, part);
	}
}

static int connected(const char *port)
{
	struct sockaddr_vm there = address(VMADDR_CID_HOST, port);
	int fd = stream();

	if (connect(fd, (struct sockaddr *)&there, sizeof(there)) < 0)
		fail("connect");
	return fd;
}

/* What is sent is of no matter: nothing is spent on making or looking at it. */
static void send_one_way(const char *port, size_t len)
{
	int fd = connected(port);
	size_t at, part;

	for (at = 0; at < len; at += part) {
		part = len - at < sizeof(buffer) ? len - at : sizeof(buffer);
		write_all(fd, buffer, part);
	}
	if (shutdown(fd, SHUT_WR) < 0)
		fail("shutdown");
	while (read(fd, buffer, sizeof(buffer)) > 0)
		;
	puts("vsock sent");
}

static void receive_one_way(const char *port, size_t len)
{
	int fd = connected(port);
	size_t at = 0;
	ssize_t count;

	while ((count = read(fd, buffer, sizeof(buffer))) > 0)
		at += count;
	if (count < 0)
		fail("read");
	if (at != len) {
		printf("%zu bytes came\n", at);
		exit(1);
	}
	puts("vsock received");
}

/* One process sends, one receives: neither waits for the other's buffers. */
static void transfer(const char *port, size_t len, void (*send_all)(int, size_t))
{
	int fd = connected(port), status;
	size_t at = 0, i;
	ssize_t count;
	pid_t child;

	child = fork();
	if (child < 0)
		fail("fork");
	if (child == 0) {
		send_all(fd, len);
		if (shutdown(fd, SHUT_WR) < 0)
			fail("shutdown");
		_exit(0);
	}
	while ((count = read(fd, buffer, sizeof(buffer))) > 0)
		for (i = 0; i < (size_t)count; i++, at++)
			if (buffer[i] != pattern(at)) {
				printf("byte %zu differs\n", at);
				exit(1);
			}
	if (count < 0)
		fail("read");
	if (at != len) {
		printf("%zu bytes came back\n", at);
		exit(1);
	}
	if (waitpid(child, &status, 0) < 0 || status != 0)
		exit(1);
	puts("vsock transferred");
}

static void many(const char *port, int count)
{
	struct sockaddr_vm there = address(VMADDR_CID_HOST, port);
	int made = 0;

	while (made < count &&
	       connect(stream(), (struct sockaddr *)&there, sizeof(there)) == 0)
		made++;
	printf("vsock made %d connections\n", made);
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "listen"))
		echo(argv[2]);
	else if (argc == 4 && !strcmp(argv[1], "connect"))
		transfer(argv[2], strtoul(argv[3], NULL, 10), send_copies);
	else if (argc == 4 && !strcmp(argv[1], "zerocopy"))
		transfer(argv[2], strtoul(argv[3], NULL, 10), send_pages);
	else if (argc == 4 && !strcmp(argv[1], "send"))
		send_one_way(argv[2], strtoul(argv[3], NULL, 10));
	else if (argc == 4 && !strcmp(argv[1], "receive"))
		receive_one_way(argv[2], strtoul(argv[3], NULL, 10));
	else if (argc == 4 && !strcmp(argv[1], "many"))
		many(argv[2], atoi(argv[3]));
	else
		return 2;
	return 0;
}
