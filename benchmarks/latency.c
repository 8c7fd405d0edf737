// SPDX-License-Identifier: Apache-2.0
/* How long a connect takes. On its standard input lines of "IPV4-ADDRESS PORT CONNECTS"; for each it connects so often, asks
 * who is there, and says in nanoseconds: the median and the 99th of 100 of connect(2), the same of everything until the
 * first byte of the answer, and the time for all. */
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

static void connect_once(const struct sockaddr_in *to, int turn)
{
	struct linger reset = { .l_onoff = 1 };
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	uint64_t start = now();
	char answer[4];

	if (fd < 0 || connect(fd, (const struct sockaddr *)to, sizeof(*to)))
		err(1, "connect");
	connected[turn] = now() - start;
	if (send(fd, "?", 1, 0) != 1 || recv(fd, answer, sizeof(answer), MSG_WAITALL) != sizeof(answer))
		err(1, "recv");
	answered[turn] = now() - start;
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	close(fd);
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

int main(void)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	unsigned short port;
	int connects, turn;
	char address[16];

	while (scanf("%15s %hu %d", address, &port, &connects) == 3) {
		uint64_t start;

		to.sin_port = htons(port);
		if (inet_pton(AF_INET, address, &to.sin_addr) != 1 || connects < 1 || connects > MOST)
			errx(2, "%s is no address, or %d too many", address, connects);
		start = now();
		for (turn = 0; turn < connects; turn++)
			connect_once(&to, turn);
		start = now() - start;
		qsort(connected, connects, sizeof(*connected), compare);
		qsort(answered, connects, sizeof(*answered), compare);
		printf("%lu %lu %lu %lu %lu\n", connected[connects / 2], connected[connects * 99 / 100],
		       answered[connects / 2], answered[connects * 99 / 100], start);
		fflush(stdout);
	}
	return 0;
}
