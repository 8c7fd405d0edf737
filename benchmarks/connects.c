// SPDX-License-Identifier: Apache-2.0
/* A client with little cost of its own. Usage: connects DESCRIPTOR, and on its standard input lines of
 * "IPV4-ADDRESS PORT CONNECTS CLOSE"; it makes so many connections, and closes first its own end and then the other.
 * CLOSE is rst or fin. The other end is at the listener of this descriptor, or, if that is a TUN device, on another host.
 * Then it prints the nanoseconds in connect(2), and those of a connection from socket(2) to the close of both ends. */
#include <arpa/inet.h>
#include <err.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "other_host.h"

#define MOST 100000

static uint64_t connected[MOST], whole[MOST];

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

/* Where the other end of connections is. */
struct other_end {
	int listener; /* -1: on another host */
	int ended;    /* a byte can be read there after each connection to another host */
};

static struct other_end end_at(int descriptor)
{
	int ended[2];
	struct stat kind;

	if (fstat(descriptor, &kind))
		err(1, "descriptor %d", descriptor);
	if (S_ISSOCK(kind.st_mode))
		return (struct other_end){ .listener = descriptor };
	if (pipe(ended))
		err(1, "pipe");
	if (!fork()) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		be_other_host(descriptor, ended[1]);
	}
	return (struct other_end){ .listener = -1, .ended = ended[0] };
}

static void connect_once(const struct sockaddr_in *to, const struct other_end *other, int resets, int turn)
{
	struct linger reset = { .l_onoff = 1 };
	uint64_t start = now(), called;
	int client = socket(AF_INET, SOCK_STREAM, 0), server = -1;
	char byte;

	called = now();
	if (client < 0 || connect(client, (const struct sockaddr *)to, sizeof(*to)))
		err(1, "connect");
	connected[turn] = now() - called;
	if (other->listener >= 0) {
		server = accept(other->listener, 0, 0);
		if (server < 0)
			err(1, "accept");
	}
	if (resets && setsockopt(client, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset)))
		err(1, "setsockopt");
	close(client);
	if (server >= 0)
		close(server);
	else if (read(other->ended, &byte, 1) != 1)
		err(1, "the other host");
	whole[turn] = now() - start;
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* The mean of the quarter below the median. Interrupts, and other processes, add to some of the values, and to how many
 * depends on chance; but they take nothing away. */
static double undisturbed(uint64_t *values, int count)
{
	int first = count / 4, last = (count + 1) / 2, turn;
	double sum = 0;

	qsort(values, count, sizeof(*values), compare);
	for (turn = first; turn < last; turn++)
		sum += values[turn];
	return sum / (last - first);
}

int main(int count, char **arguments)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	struct other_end other = end_at(count == 2 ? atoi(arguments[1]) : -1);
	int connects, turn;
	unsigned short port;
	char address[16], closing[4];

	while (scanf("%15s %hu %d %3s", address, &port, &connects, closing) == 4) {
		int resets = !strcmp(closing, "rst");

		to.sin_port = htons(port);
		if (inet_pton(AF_INET, address, &to.sin_addr) != 1)
			errx(1, "%s is no address", address);
		if (connects < 1 || connects > MOST || (!resets && strcmp(closing, "fin")))
			errx(1, "%d connects closed by %s are not possible", connects, closing);
		for (turn = 0; turn < connects; turn++)
			connect_once(&to, &other, resets, turn);
		printf("%.1f %.1f\n", undisturbed(connected, connects), undisturbed(whole, connects));
		fflush(stdout);
	}
	return 0;
}
