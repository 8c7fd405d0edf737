// SPDX-License-Identifier: Apache-2.0
/* A client that connects without pause, and records each connect. Usage: client KIND FOLDER ADDRESS,PORT...
 *
 * KIND is tcp, with blocking connects; poll, with several non-blocking connects at once; udp, which connects each
 * socket; or sendto, which does not connect, and sends many datagrams on each socket. The targets are taken in turn.
 * Records are those of soak/record.py, in files that are renamed to *.done when they are complete. SIGTERM ends it. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST_TARGETS 64
#define AT_ONCE 16
#define DATAGRAMS 100 /* of one socket */
#define PATIENCE_MS 20000
#define FILE_NS 5000000000ULL

enum stage { REACHED, CONNECT_FAILED, NO_ANSWER, WRONG_PEER };

struct record {
	uint64_t start, end; /* CLOCK_MONOTONIC ns */
	uint32_t reached;
	uint32_t error;
	uint16_t target;
	uint16_t stage;
	uint32_t zero;
};

struct target {
	struct sockaddr_storage address;
	socklen_t size;
};

static struct target targets[MOST_TARGETS];
static volatile sig_atomic_t ended;
static const char *folder;
static FILE *output;
static uint64_t file_began;
static int count, turn, files;

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

static void name_of(char *name, const char *suffix)
{
	snprintf(name, 4096, "%s/%06d%s", folder, files, suffix);
}

static void finish_file(void)
{
	char part[4096], done[4096];

	if (!output)
		return;
	name_of(part, ".part");
	name_of(done, ".done");
	if (fclose(output) || rename(part, done))
		err(1, "%s", part);
	output = 0;
	files++;
}

static void note(uint64_t start, int target, enum stage stage, int error, uint32_t reached)
{
	struct record record = { start, now(), ntohl(reached), error, target, stage, 0 };
	char part[4096];

	if (output && record.end - file_began > FILE_NS)
		finish_file();
	if (!output) {
		name_of(part, ".part");
		output = fopen(part, "w");
		if (!output)
			err(1, "%s", part);
		file_began = record.end;
	}
	if (fwrite(&record, sizeof(record), 1, output) != 1)
		err(1, "fwrite");
}

static int next_target(void)
{
	return turn++ % count;
}

static int opened(int target, int type)
{
	int fd = socket(targets[target].address.ss_family, type, 0);

	if (fd < 0)
		err(1, "socket");
	return fd;
}

/* Close without TIME_WAIT, which would use up the ports. */
static void closed(int fd)
{
	struct linger reset = { .l_onoff = 1 };

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	close(fd);
}

static int is_target(int target, const struct sockaddr_storage *seen)
{
	const struct sockaddr_storage *asked = &targets[target].address;
	const struct sockaddr_in6 *a = (const void *)asked, *b = (const void *)seen;

	if (asked->ss_family != seen->ss_family)
		return 0;
	if (asked->ss_family == AF_INET)
		return !memcmp(asked, seen, 8);
	return a->sin6_port == b->sin6_port && !memcmp(&a->sin6_addr, &b->sin6_addr, 16);
}

static int sees_target(int target, int fd)
{
	struct sockaddr_storage seen;
	socklen_t size = sizeof(seen);

	return !getpeername(fd, (void *)&seen, &size) && is_target(target, &seen);
}

static int waits(int fd, int events)
{
	struct pollfd one = { .fd = fd, .events = events };
	int ready;

	do
		ready = poll(&one, 1, PATIENCE_MS);
	while (ready < 0 && errno == EINTR);
	return ready > 0 ? 0 : ETIMEDOUT;
}

/* Query the server of a connected socket for its number, and record it. */
static void ask(int fd, int target, uint64_t start)
{
	int seen = sees_target(target, fd), error;
	uint32_t reached = 0;

	if (send(fd, "?", 1, MSG_NOSIGNAL) != 1) {
		note(start, target, NO_ANSWER, errno, 0);
		return;
	}
	error = waits(fd, POLLIN);
	errno = 0; /* the end of the connection does not set it */
	if (error)
		note(start, target, NO_ANSWER, error, 0);
	else if (recv(fd, &reached, sizeof(reached), MSG_DONTWAIT) != sizeof(reached))
		note(start, target, NO_ANSWER, errno, 0);
	else
		note(start, target, seen ? REACHED : WRONG_PEER, 0, reached);
}

static void connect_once(int type)
{
	int target = next_target(), fd = opened(target, type);
	uint64_t start = now();

	if (connect(fd, (void *)&targets[target].address, targets[target].size))
		note(start, target, CONNECT_FAILED, errno, 0);
	else
		ask(fd, target, start);
	closed(fd);
}

/* AT_ONCE connects at once; each queries its server when it is connected, and all have ended before the next batch. */
static void connect_many(void)
{
	struct pollfd under_way[AT_ONCE];
	int their_targets[AT_ONCE], index;
	uint64_t starts[AT_ONCE];

	for (index = 0; index < AT_ONCE; index++) {
		int target = next_target(), fd = opened(target, SOCK_STREAM | SOCK_NONBLOCK);

		their_targets[index] = target;
		under_way[index] = (struct pollfd){ .fd = fd, .events = POLLOUT };
		starts[index] = now();
		if (connect(fd, (void *)&targets[target].address, targets[target].size) && errno != EINPROGRESS) {
			note(starts[index], target, CONNECT_FAILED, errno, 0);
			closed(fd);
			under_way[index].fd = -1;
		}
	}
	for (index = 0; index < AT_ONCE; index++) {
		int fd = under_way[index].fd, error = 0;
		socklen_t size = sizeof(error);

		if (fd < 0)
			continue;
		if (waits(fd, POLLOUT))
			error = ETIMEDOUT;
		else
			getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
		if (error) /* a reset comes after the connect, of a server that has died since */
			note(starts[index], their_targets[index], error == ECONNRESET ? NO_ANSWER : CONNECT_FAILED,
			     error, 0);
		else
			ask(fd, their_targets[index], starts[index]);
		closed(fd);
	}
}

static void send_many(void)
{
	int target = next_target(), fd = opened(target, SOCK_DGRAM), sent;

	for (sent = 0; sent < DATAGRAMS && !ended; sent++) {
		struct sockaddr_storage from;
		socklen_t size = sizeof(from);
		uint64_t start = now();
		uint32_t reached = 0;
		int error;

		if (sendto(fd, "?", 1, 0, (void *)&targets[target].address, targets[target].size) != 1) {
			note(start, target, CONNECT_FAILED, errno, 0);
			break;
		}
		error = waits(fd, POLLIN);
		if (error ||
		    recvfrom(fd, &reached, sizeof(reached), MSG_DONTWAIT, (void *)&from, &size) != sizeof(reached)) {
			note(start, target, NO_ANSWER, error ? error : errno, 0);
			break;
		}
		note(start, target, is_target(target, &from) ? REACHED : WRONG_PEER, 0, reached);
	}
	close(fd);
}

static void add_target(char *text)
{
	struct target *target = &targets[count];
	struct sockaddr_in6 *six = (void *)&target->address;
	struct sockaddr_in *four = (void *)&target->address;
	char *port = strchr(text, ',');

	if (!port || count == MOST_TARGETS)
		errx(2, "%s is no target", text);
	*port++ = 0;
	if (inet_pton(AF_INET, text, &four->sin_addr) == 1) {
		four->sin_family = AF_INET;
		four->sin_port = htons(atoi(port));
		target->size = sizeof(*four);
	} else if (inet_pton(AF_INET6, text, &six->sin6_addr) == 1) {
		six->sin6_family = AF_INET6;
		six->sin6_port = htons(atoi(port));
		target->size = sizeof(*six);
	} else {
		errx(2, "%s is no address", text);
	}
	count++;
}

static void end(int signal)
{
	(void)signal;
	ended = 1;
}

int main(int argument_count, char **arguments)
{
	const char *kind = arguments[1];
	int index;

	if (argument_count < 4)
		errx(2, "usage: client KIND FOLDER ADDRESS,PORT...");
	signal(SIGTERM, end);
	folder = arguments[2];
	for (index = 3; index < argument_count; index++)
		add_target(arguments[index]);
	while (!ended) {
		if (!strcmp(kind, "tcp"))
			connect_once(SOCK_STREAM);
		else if (!strcmp(kind, "poll"))
			connect_many();
		else if (!strcmp(kind, "udp"))
			connect_once(SOCK_DGRAM);
		else if (!strcmp(kind, "sendto"))
			send_many();
		else
			errx(2, "%s is no kind", kind);
	}
	finish_file();
	return 0;
}
