// SPDX-License-Identifier: Apache-2.0
/* A real server that sends its number. Usage: server NUMBER PORT ADDRESS...
 *
 * It serves TCP and UDP on this port of each address, and answers with its number: to a question mark and to any
 * datagram as four bytes in network order; to an HTTP request as text; to a Redis command as an integer. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST 65536

enum kind { NONE, LISTENER, DATAGRAMS, CONNECTION };

static enum kind kinds[MOST]; /* by descriptor */
static int events, number;

static void watch(int fd, enum kind kind)
{
	struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };

	if (fd >= MOST || epoll_ctl(events, EPOLL_CTL_ADD, fd, &event))
		err(1, "epoll_ctl");
	kinds[fd] = kind;
}

static void serve(const char *address, int port, int type)
{
	struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	struct sockaddr_in four = { .sin_family = AF_INET, .sin_port = htons(port) };
	int is_six = inet_pton(AF_INET6, address, &six.sin6_addr) == 1, one = 1;
	int fd = socket(is_six ? AF_INET6 : AF_INET, type | SOCK_NONBLOCK, 0);

	if (!is_six && inet_pton(AF_INET, address, &four.sin_addr) != 1)
		errx(1, "%s is no address", address);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)))
		err(1, "socket");
	if (is_six ? bind(fd, (void *)&six, sizeof(six)) : bind(fd, (void *)&four, sizeof(four)))
		err(1, "bind %s", address);
	if (type == SOCK_STREAM && listen(fd, 4096))
		err(1, "listen");
	watch(fd, type == SOCK_STREAM ? LISTENER : DATAGRAMS);
}

static void done(int fd)
{
	kinds[fd] = NONE;
	close(fd);
}

/* Answer a request; the client closes. */
static void answer(int fd)
{
	uint32_t name = htonl(number);
	char question[4096], text[256];
	ssize_t size = recv(fd, question, sizeof(question), 0);

	if (size < 0 && errno == EAGAIN)
		return;
	if (size <= 0) {
		done(fd);
		return;
	}
	if (question[0] == '?') {
		send(fd, &name, sizeof(name), MSG_NOSIGNAL);
	} else if (question[0] == '*') {
		snprintf(text, sizeof(text), ":%d\r\n", number);
		send(fd, text, strlen(text), MSG_NOSIGNAL);
	} else {
		snprintf(text, sizeof(text), "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n%05d", number);
		send(fd, text, strlen(text), MSG_NOSIGNAL);
	}
}

static void take(int listener)
{
	int fd;

	while ((fd = accept4(listener, 0, 0, SOCK_NONBLOCK)) >= 0) {
		watch(fd, CONNECTION);
		answer(fd);
	}
}

static void echo(int fd)
{
	uint32_t name = htonl(number);
	struct sockaddr_storage from;
	socklen_t size = sizeof(from);
	char question[16];

	while (recvfrom(fd, question, sizeof(question), 0, (void *)&from, &size) >= 0) {
		sendto(fd, &name, sizeof(name), 0, (void *)&from, size);
		size = sizeof(from);
	}
}

int main(int count, char **arguments)
{
	struct epoll_event found[64];
	int index, ready;

	if (count < 4)
		errx(2, "usage: server NUMBER PORT ADDRESS...");
	number = atoi(arguments[1]);
	events = epoll_create1(0);
	for (index = 3; index < count; index++) {
		serve(arguments[index], atoi(arguments[2]), SOCK_STREAM);
		serve(arguments[index], atoi(arguments[2]), SOCK_DGRAM);
	}
	puts("serving");
	fflush(stdout);
	for (;;) {
		ready = epoll_wait(events, found, 64, -1);
		for (index = 0; index < ready; index++) {
			int fd = found[index].data.fd;

			if (kinds[fd] == LISTENER)
				take(fd);
			else if (kinds[fd] == DATAGRAMS)
				echo(fd);
			else if (kinds[fd] == CONNECTION)
				answer(fd);
		}
	}
}
