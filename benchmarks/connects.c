// SPDX-License-Identifier: Apache-2.0
/* A client with little cost of its own. Usage: connects LISTENER-DESCRIPTOR, and on its standard input lines of
 * "IPV4-ADDRESS PORT CONNECTS"; it makes so many connects, accepts each connection at the listener, and resets it. Then
 * it prints the nanoseconds in connect(2), and the nanoseconds in total. */
#include <arpa/inet.h>
#include <err.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

/* Returns the nanoseconds in connect(2). */
static uint64_t connect_once(const struct sockaddr_in *to, int listener)
{
	struct linger reset = { .l_onoff = 1 };
	int client = socket(AF_INET, SOCK_STREAM, 0), server;
	uint64_t taken = now();

	if (client < 0 || connect(client, (const struct sockaddr *)to, sizeof(*to)))
		err(1, "connect");
	taken = now() - taken;
	server = accept(listener, 0, 0);
	if (server < 0)
		err(1, "accept");
	if (setsockopt(client, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset)))
		err(1, "setsockopt");
	close(client);
	close(server);
	return taken;
}

int main(int count, char **arguments)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	int listener = count == 2 ? atoi(arguments[1]) : -1, connects;
	unsigned short port;
	char address[16];

	while (scanf("%15s %hu %d", address, &port, &connects) == 3) {
		uint64_t start, connected = 0;

		to.sin_port = htons(port);
		if (inet_pton(AF_INET, address, &to.sin_addr) != 1)
			errx(1, "%s is no address", address);
		start = now();
		while (connects--)
			connected += connect_once(&to, listener);
		printf("%lu %lu\n", connected, now() - start);
		fflush(stdout);
	}
	return 0;
}
