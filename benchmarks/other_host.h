/* SPDX-License-Identifier: Apache-2.0 */
/* The host of a server, as far as the client's host sees it: it accepts every connection to any of its addresses, and
 * closes after the client. The packets come from a TUN device, so the kernel has no socket of the server. */
#ifndef OTHER_HOST_H
#define OTHER_HOST_H

#include <arpa/inet.h>
#include <err.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#define FIRST 1 /* the first sequence number of the server */

struct packet {
	struct iphdr ip;
	struct tcphdr tcp;
	uint8_t more[1500];
};
#define HEADERS (sizeof(struct iphdr) + sizeof(struct tcphdr))

typedef uint16_t __attribute__((may_alias)) word;

/* The sum of 16-bit words of an even number of bytes (RFC 1071), after what was summed before. */
static uint32_t sum(const void *data, unsigned int bytes, uint32_t total)
{
	const word *words = data;

	for (; bytes; bytes -= 2)
		total += *words++;
	return total;
}

static uint16_t folded(uint32_t total)
{
	total = (total & 0xffff) + (total >> 16);
	return ~(total + (total >> 16));
}

/* Send a segment without data in response to a packet. */
static void respond(int device, const struct packet *to, uint32_t sequence, int syn, int fin)
{
	struct packet packet = { .ip = { .version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_TCP } };
	struct tcphdr *tcp = &packet.tcp;

	packet.ip.tot_len = htons(HEADERS);
	packet.ip.saddr = to->ip.daddr;
	packet.ip.daddr = to->ip.saddr;
	packet.ip.check = folded(sum(&packet.ip, sizeof(packet.ip), 0));
	tcp->source = to->tcp.dest;
	tcp->dest = to->tcp.source;
	tcp->seq = htonl(sequence);
	tcp->ack_seq = htonl(ntohl(to->tcp.seq) + 1); /* both SYN and FIN count as one byte */
	tcp->doff = sizeof(*tcp) / 4;
	tcp->syn = syn;
	tcp->fin = fin;
	tcp->ack = 1;
	tcp->window = htons(65535);
	tcp->check = folded(sum(tcp, sizeof(*tcp), sum(&packet.ip.saddr, 8, htons(IPPROTO_TCP) + htons(sizeof(*tcp)))));
	if (write(device, &packet, HEADERS) != (ssize_t)HEADERS)
		err(1, "write to the TUN device");
}

/* Be that host for ever, and write a byte to `ended` whenever a connection is over at both ends. */
static void be_other_host(int device, int ended)
{
	struct sched_param first = { .sched_priority = 1 };
	struct packet packet;

	/* It responds at once, always at the same point of the client's system call. */
	if (sched_setscheduler(0, SCHED_FIFO, &first))
		err(1, "sched_setscheduler");
	for (;;) {
		if (read(device, &packet, sizeof(packet)) < (ssize_t)HEADERS)
			err(1, "read from the TUN device");
		if (packet.ip.version != 4 || packet.ip.protocol != IPPROTO_TCP)
			continue;
		if (packet.tcp.syn) {
			respond(device, &packet, FIRST, 1, 0);
		} else if (packet.tcp.fin) {
			respond(device, &packet, FIRST + 1, 0, 0);
			respond(device, &packet, FIRST + 1, 0, 1);
		} else if (packet.tcp.rst ||
			   ntohl(packet.tcp.ack_seq) == FIRST + 2) { /* the last one acknowledges its FIN */
			if (write(ended, "", 1) != 1)
				err(1, "write to the client");
		}
	}
}

#endif
