// SPDX-License-Identifier: Apache-2.0
/* A client that costs little itself. Usage: connects LISTENER-DESCRIPTOR, and on its standard input lines of
 * "IPV4-ADDRESS PORT CONNECTS"; it connects so often, accepts each connection at the listener, resets it, and says "ok". */
#include <arpa/inet.h>
#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void connect_once(const struct sockaddr_in *to, int listener)
{
	struct linger reset = { .l_onoff = 1 };
	int client = socket(AF_INET, SOCK_STREAM, 0), server;

	if (client < 0 || connect(client, (const struct sockaddr *)to, sizeof(*to)))
		err(1, "connect");
	server = accept(listener, 0, 0);
	if (server < 0)
		err(1, "accept");
	if (setsockopt(client, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset)))
		err(1, "setsockopt");
	close(client);
	close(server);
}

int main(int count, char **arguments)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	int listener = count == 2 ? atoi(arguments[1]) : -1, connects;
	unsigned short port;
	char address[16];

	while (scanf("%15s %hu %d", address, &port, &connects) == 3) {
		to.sin_port = htons(port);
		if (inet_pton(AF_INET, address, &to.sin_addr) != 1)
			errx(1, "%s is no address", address);
		while (connects--)
			connect_once(&to, listener);
		puts("ok");
		fflush(stdout);
	}
	return 0;
}
