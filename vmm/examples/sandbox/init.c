/*
 * PID 1 of the sandbox example's guest: loads the modules in /modules, in the order of their names, takes a shell script from port
 * 1000 of the host (AF_VSOCK, CID 2), runs it with its output on that stream, sends its status to port 1001, and powers off.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

static void off(const char *what)
{
	if (what)
		fprintf(stderr, "sandbox: %s: %s\n", what, strerror(errno));
	sync();
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

static void load_modules(void)
{
	struct dirent **names;
	int count = scandir("/modules", &names, NULL, alphasort);

	for (int i = 0; i < count; i++) {
		char path[300];
		int fd;

		if (names[i]->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/modules/%s", names[i]->d_name);
		fd = open(path, O_RDONLY);
		/* One that the kernel has already is no trouble; what is missing shows when it is needed. */
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
			fprintf(stderr, "sandbox: %s: %s\n", path, strerror(errno));
		close(fd);
	}
}

static int host(unsigned int port)
{
	struct sockaddr_vm address = {
		.svm_family = AF_VSOCK,
		.svm_cid = VMADDR_CID_HOST,
		.svm_port = port,
	};
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)))
		off("no connection to the host");
	return fd;
}

int main(void)
{
	char *argv[] = { "sh", "/tmp/script", NULL }, *envp[] = { "PATH=/bin", "HOME=/tmp", NULL };
	char buffer[4096], text[16];
	int stream, script, status, len;
	ssize_t count;
	pid_t child;

	mount("proc", "/proc", "proc", 0, NULL);
	mount("tmp", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=50%");
	load_modules();
	stream = host(1000);
	script = open("/tmp/script", O_WRONLY | O_CREAT, 0600);
	while ((count = read(stream, buffer, sizeof(buffer))) > 0)
		if (write(script, buffer, count) != count)
			off("the script does not fit");
	close(script);

	child = fork();
	if (child == 0) {
		dup2(stream, 1);
		dup2(stream, 2);
		execve("/bin/busybox", argv, envp);
		_exit(127);
	}
	/* What the script leaves behind is reaped, too. */
	do
		count = wait(&status);
	while (count > 0 && count != child);
	shutdown(stream, SHUT_RDWR);
	len = snprintf(text, sizeof(text), "%d",
		       WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
	stream = host(1001);
	if (write(stream, text, len) != len)
		off("the status is not sent");
	shutdown(stream, SHUT_WR);
	/* The host closes when it has it. */
	if (read(stream, buffer, 1) < 0)
		off("the status is not taken");
	off(NULL);
}
