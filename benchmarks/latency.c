// SPDX-License-Identifier: Apache-2.0
/* Measure the time of connects. Usage: latency PORT, on which it listens. On its standard input are lines of
 * "IPV4-ADDRESS PORT OTHER-PORT CONNECTS". So many times it connects to the first port, which has to lead to itself, so
 * that no other process is woken; then to the other port, where it queries the server. It prints in nanoseconds: the
 * median and the 99th of 100 of the first connect(2), the same of the second with its answer, and the total time of the
 * latter. The first port may be 0, for none. */
#include <arpa/inet.h>
#include <err.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST 100000

static uint64_t connected[MOST], answered[MOST];

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

/* Close without TIME_WAIT, which would use up the ports. */
static void closed(int fd)
{
	struct linger reset = { .l_onoff = 1 };

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	close(fd);
}

static int listening(unsigned short port)
{
	struct sockaddr_in here = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&here, sizeof(here)) || listen(fd, 16))
		err(1, "port %d", port);
	return fd;
}

static void connect_once(const struct sockaddr_in *to, int listener, int turn)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0), server;
	uint64_t start = now();

	if (fd < 0 || connect(fd, (const struct sockaddr *)to, sizeof(*to)))
		err(1, "connect");
	connected[turn] = now() - start;
	server = accept(listener, 0, 0);
	if (server < 0)
		err(1, "accept");
	closed(fd);
	close(server);
}

static void ask_once(const struct sockaddr_in *to, int turn)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	uint64_t start = now();
	char answer[4];

	if (fd < 0 || connect(fd, (const struct sockaddr *)to, sizeof(*to)))
		err(1, "connect");
	if (send(fd, "?", 1, 0) != 1 || recv(fd, answer, sizeof(answer), MSG_WAITALL) != sizeof(answer))
		err(1, "recv");
	answered[turn] = now() - start;
	closed(fd);
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

int main(int count, char **arguments)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	int listener = listening(count == 2 ? atoi(arguments[1]) : 0), connects, turn;
	unsigned short own, port;
	char address[16];

	while (scanf("%15s %hu %hu %d", address, &own, &port, &connects) == 4) {
		uint64_t start;

		to.sin_port = htons(own);
		if (inet_pton(AF_INET, address, &to.sin_addr) != 1 || connects < 1 || connects > MOST)
			errx(2, "%s is no address, or %d too many", address, connects);
		for (turn = 0; own && turn < connects; turn++)
			connect_once(&to, listener, turn);
		to.sin_port = htons(port);
		start = now();
		for (turn = 0; turn < connects; turn++)
			ask_once(&to, turn);
		start = now() - start;
		qsort(connected, connects, sizeof(*connected), compare);
		qsort(answered, connects, sizeof(*answered), compare);
		printf("%lu %lu %lu %lu %lu\n", connected[connects / 2], connected[connects * 99 / 100],
		       answered[connects / 2], answered[connects * 99 / 100], start);
		fflush(stdout);
	}
	return 0;
}
